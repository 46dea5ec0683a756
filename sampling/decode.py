"""Feeding a model a batch of growing texts: windows, cache, and a fast step for one token.

`Reader` keeps the histories and decides what the model has to read; `FastStep` is `TinyGPT.next_logits` for the case
that takes nearly all the time, one new token a row. Shapes as in tiny_decoder.py.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tiny_decoder import KVCache, TinyGPT

WEIGHTS = ("float32", "int8")


def product(weight: Tensor, bias: Tensor, weights: str) -> Callable[[Tensor], Tensor]:
    """The function x (B, in) -> x @ weight.T + bias (B, out) for a weight (out, in).

    A single row on a CPU goes through numpy: on an AMD processor its OpenBLAS reads a matrix from memory twice as fast
    as the MKL behind PyTorch. int8 keeps one scale per output (weight-only quantization, absmax / 127) and multiplies
    in bfloat16; PyTorch's kernel for it takes 16 inputs at a time and runs beyond the end of any other number, so such
    matrices stay float32.
    """
    if weights == "float32" or weight.size(1) % 16:
        if weight.device.type != "cpu":
            return lambda x: F.linear(x, weight, bias)
        matrix = weight.detach().numpy()
        return lambda x: (
            torch.from_numpy(matrix.dot(x[0].numpy())).add_(bias)[None] if x.size(0) == 1 else F.linear(x, weight, bias)
        )
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
    rounded = (weight / scale[:, None]).round().to(torch.int8)
    scale = scale.bfloat16()
    return lambda x: torch._weight_int8pack_mm(x.bfloat16(), rounded, scale) + bias


class FastStep:
    """The next token's logits in straight lines: no module calls, weights laid out once, the cache written in place.

    At batch 1 a token costs less arithmetic than the detours around it, so this is worth a second writing of
    `DecoderBlock`; the tests hold the two equal. All rows must be equally long (`KVCache.lengths`).
    """

    @torch.no_grad()
    def __init__(self, model: TinyGPT, weights: str = "float32"):
        def norm(layer: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
            return layer.weight, layer.bias, layer.eps

        def linear(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
            return product(layer.weight, layer.bias, weights)

        self.width, self.heads = (model.config.embed_dim,), model.config.num_heads
        self.tokens, self.positions = model.token_embedding.weight, model.position_embedding.weight
        self.blocks = [
            (
                *(norm(block.attention_norm), product(attention.in_proj_weight, attention.in_proj_bias, weights)),
                *(linear(attention.out_proj), norm(block.mlp_norm), linear(block.mlp[0]), linear(block.mlp[2])),
            )
            for block in model.blocks
            for attention in [block.attention]
        ]
        self.final_norm, self.head = norm(model.final_norm), linear(model.head)

    def __call__(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """tokens (B,), one per row, are added to the cache -> the logits (B, V) after them."""
        width, batch, slot, end = self.width, tokens.size(0), cache.lengths[0], cache.lengths[0] + 1
        x = self.tokens[tokens] + self.positions[slot]  # (B, C)
        for (norm1, qkv, out, norm2, up, down), kept in zip(self.blocks, cache.layers, strict=True):
            new = qkv(torch.layer_norm(x, width, *norm1)).view(batch, 3, self.heads, -1).transpose(0, 1)
            kept.select(3, slot).copy_(new[1:])  # keys and values at once
            keys, values = kept.narrow(3, 0, end).unbind()  # (B, nh, end, hs)
            h = F.scaled_dot_product_attention(new[0].unsqueeze(2), keys, values)
            x = out(h.reshape(batch, -1)).add_(x)
            x = down(F.gelu(up(torch.layer_norm(x, width, *norm2)))).add_(x)
        cache.lengths = [end] * batch
        return self.head(torch.layer_norm(x, width, *self.final_norm))


class Reader:
    """A model reading a batch of texts that grow by one token per row at a time.

    Every row has a window of at most max_seq tokens. While it has room, the cache answers for the tokens before the
    last. A full window must drop `hop` tokens at its left end to take one more; all positions, and with them all keys,
    change, so the window is read anew. With hop 1 that is the exact sliding window, and every further token costs a
    whole window; with hop H only every H-th token does, and the model sees between max_seq - H + 1 and max_seq tokens.
    """

    def __init__(self, model: TinyGPT, prompts: list[list[int]], hop: int = 1, step: FastStep | None = None):
        """prompts: the token ids of each row, at least one, of any lengths. step: made here if there is none yet.

        Raises ValueError for an empty prompt, or a hop outside 1 … max_seq.
        """
        self.max_seq = model.config.max_seq
        if not 1 <= hop <= self.max_seq:
            raise ValueError(f"--hop must be from 1 to the model's window of {self.max_seq} tokens, not {hop}")
        if not prompts or not all(prompts):
            raise ValueError("every prompt needs at least one token")
        self.model = model.eval()
        self.device = model.position_embedding.weight.device
        self.hop = hop
        self.rows = [list(prompt) for prompt in prompts]
        self.starts = [max(0, len(row) - self.max_seq) for row in self.rows]  # where each row's window begins
        self.cache = KVCache(model, len(prompts))
        self.step = step or FastStep(model)

    @torch.inference_mode()
    def next_logits(self) -> Tensor:
        """Logits (B, V), float32, after the last token of every row. Raises FloatingPointError if not finite.

        They come on the CPU: choosing among so few numbers is no work, and takes float64, which not every device has.
        """
        lengths = self.cache.lengths
        if self.slide() or any(len(r) - s != n + 1 for r, s, n in zip(self.rows, self.starts, lengths, strict=True)):
            logits = self.read_windows()
        else:
            last = torch.tensor([row[-1] for row in self.rows], device=self.device)
            equal = min(lengths) == max(lengths)
            logits = self.step(last, self.cache) if equal else self.model.next_logits(last[:, None], self.cache)
        logits = logits.float().cpu()
        low, high = logits.aminmax()  # both are NaN if any logit is
        if not math.isfinite((high - low).item()):
            raise FloatingPointError("the model gave logits that are not finite: its weights are damaged")
        return logits

    def slide(self) -> bool:
        """Make room for one token in the windows that have none; whether there were any."""
        full = [b for b, row in enumerate(self.rows) if len(row) - self.starts[b] > self.max_seq]
        for b in full:
            self.starts[b] = len(self.rows[b]) - self.max_seq - 1 + self.hop
        return bool(full)

    def read_windows(self) -> Tensor:
        """Fill the cache anew with every row's window; the logits (B, V) after them."""
        windows = [row[start:] for row, start in zip(self.rows, self.starts, strict=True)]
        lengths = [len(window) for window in windows]
        padded = [window + [0] * (max(lengths) - len(window)) for window in windows]
        self.cache.clear()
        return self.model.next_logits(torch.tensor(padded, device=self.device), self.cache, lengths)

    def append(self, tokens: list[int]) -> None:
        """Add one token to every row."""
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)

    def reorder(self, rows: list[int]) -> None:
        """Row i becomes what row rows[i] was, history, window and cache."""
        self.rows = [list(self.rows[row]) for row in rows]
        self.starts = [self.starts[row] for row in rows]
        self.cache.reorder(rows)
