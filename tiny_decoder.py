"""TinyGPT: a decoder-only transformer, from the attention leaf to the whole model.

Shapes: B batch, T time (tokens in the window), C embed_dim, nh num_heads, hs = C / nh, V vocab_size.

The order is GPT-2's (Radford et al. 2019): every sub-layer is normalised before it runs ("pre-norm") and its
output is added to the residual stream x, which runs from the embeddings to the head:

    ids (B, T) -> token + position embedding -> num_layers x DecoderBlock -> LayerNorm -> linear head -> (B, T, V)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class TinyGPTConfig:
    """The shape of the network. Names follow `nn.MultiheadAttention`.

    Raises ValueError that names the field if a value is out of range.
    """

    vocab_size: int
    max_seq: int  # the longest window that the model can look at, in tokens
    embed_dim: int
    num_heads: int
    num_layers: int
    dropout: float = 0.0  # probability of zeroing, on the embeddings and both residual branches
    attention_dropout: float = 0.0  # the same on the attention weights

    def __post_init__(self):
        # The upper bounds keep a damaged or hostile checkpoint from asking for more memory than any machine has.
        for name, most in (
            ("vocab_size", 2**24),
            ("max_seq", 2**14),
            ("embed_dim", 2**14),
            ("num_heads", 2**10),
            ("num_layers", 2**10),
        ):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name} must be a whole number from 1 to {most}, not {value!r}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim ({self.embed_dim}) must be divisible by num_heads ({self.num_heads})")
        for name in ("dropout", "attention_dropout"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise ValueError(f"{name} must be a number from 0 up to, not including, 1, not {value!r}")


class KVCache:
    """The keys and values of every layer, (B, nh, max_seq, hs) each, allocated once.

    Slot p of a row belongs to the row's position p; lengths[b] slots of row b are filled, and what lies beyond them
    is never looked at. Positions are learned and added to the embeddings, so a key is bound to its position: when the
    window moves, every key changes, and the cache has to be filled anew (set `lengths` to zeros).
    """

    def __init__(self, model: "TinyGPT", batch_size: int):
        config, like = model.config, model.position_embedding.weight
        shape = (2, batch_size, config.num_heads, config.max_seq, config.embed_dim // config.num_heads)
        # Zeros, because a masked slot counts 0 times its value, and 0 times whatever memory held might be NaN.
        self.layers = [like.new_zeros(shape) for _ in range(config.num_layers)]  # keys, then values
        self.max_seq = config.max_seq
        self.lengths = [0] * batch_size

    def clear(self) -> None:
        """Forget all tokens."""
        self.lengths = [0] * len(self.lengths)

    def reorder(self, rows: list[int]) -> None:
        """Row i becomes what row rows[i] was, in place: for beams that fork and die. The batch keeps its size."""
        used = max(self.lengths)
        for layer in self.layers:
            layer[:, :, :, :used] = layer[:, rows, :, :used]
        self.lengths = [self.lengths[row] for row in rows]

    def write(self, layer: int, chunk: "Chunk", k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put k and v (B, nh, T, hs) into the chunk's slots; returns the keys and values up to its end."""
        keys, values = self.layers[layer][0], self.layers[layer][1]
        for cached, new in ((keys, k), (values, v)):
            if isinstance(chunk.slots, slice):
                cached[:, :, chunk.slots] = new
            else:
                cached[chunk.rows, :, chunk.slots] = new.transpose(1, 2)
        return keys[:, :, : chunk.end], values[:, :, : chunk.end]


@dataclass
class Chunk:
    """Where T new tokens of every row go in a cache, and what each of them may look at."""

    rows: Tensor  # (B, 1): 0 … B - 1
    slots: slice | Tensor  # one slice if all rows are equally long, else (B, T)
    end: int  # the first slot that no row reaches
    mask: Tensor | None  # additive, (T, end) or (B, 1, T, end); None if everything may be looked at
    last: Tensor | None = None  # (B, 1): the index in 0 … T - 1 of the only token that a block shall answer for


class CausalSelfAttention(nn.MultiheadAttention):
    """Every position gathers values from itself and the positions before it, weighted by how well its query fits keys.

    Weights, their names and the result are those of `nn.MultiheadAttention(…, batch_first=True)`; what it does is
    written out below, to be read, and because a training step on a CPU is a tenth faster this way.
    """

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, C), mask the first T rows and columns of `causal_mask` -> (B, T, C)."""
        q, k, v = (self.heads(t) for t in F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1))
        dropout = self.dropout if self.training else 0.0
        if x.device.type == "cpu" and x.size(1) <= 512:
            # softmax(q k^T / sqrt(hs) + mask) v, in so many words. The fused kernel below does the same without holding
            # the (T, T) weights; on CPUs it trains more slowly, but past 512 tokens the weights would cost too much.
            scores = torch.baddbmm(mask, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=q.size(-1) ** -0.5)
            weights = F.dropout(scores.softmax(dim=-1), dropout)  # (B nh, T, T)
            h = torch.bmm(weights, v.flatten(0, 1)).view_as(q)
        else:
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        return self.join(h)

    def extend(self, x: Tensor, cache: "KVCache", layer: int, chunk: "Chunk") -> Tensor:
        """`forward`, without dropout, for tokens that come after those in the cache: x (B, T, C) -> (B, T, C).

        If the chunk asks for the last tokens alone, only their queries are made: (B, 1, C).
        """
        c, weight, bias = x.size(-1), self.in_proj_weight, self.in_proj_bias  # read once: it may be a parametrization
        if chunk.last is None:
            q, k, v = F.linear(x, weight, bias).chunk(3, dim=-1)
        else:
            q = F.linear(x[chunk.rows, chunk.last], weight[:c], bias[:c])
            k, v = F.linear(x, weight[c:], bias[c:]).chunk(2, dim=-1)
        keys, values = cache.write(layer, chunk, self.heads(k), self.heads(v))
        return self.join(F.scaled_dot_product_attention(self.heads(q), keys, values, attn_mask=chunk.mask))

    def heads(self, t: Tensor) -> Tensor:
        """Cut the width into heads: (B, T, C) -> (B, nh, T, hs)."""
        return t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def join(self, h: Tensor) -> Tensor:
        """Put the heads side by side again and mix them: (B, nh, T, hs) -> (B, T, C)."""
        return self.out_proj(h.transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    """One layer: causal self-attention, then a two-layer MLP, each behind a LayerNorm and added to the residual."""

    def __init__(self, config: TinyGPTConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.embed_dim)
        self.attention = CausalSelfAttention(
            config.embed_dim, config.num_heads, dropout=config.attention_dropout, batch_first=True
        )
        self.mlp_norm = nn.LayerNorm(config.embed_dim)
        self.mlp = nn.Sequential(
            nn.Linear(config.embed_dim, 4 * config.embed_dim),
            nn.GELU(),  # the exact one: on CPUs it is faster than the tanh approximation of GPT-2
            nn.Linear(4 * config.embed_dim, config.embed_dim),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, C), mask (T, T) additive -> (B, T, C)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def extend(self, x: Tensor, cache: "KVCache", layer: int, chunk: "Chunk") -> Tensor:
        """`forward`, without dropout, for tokens that come after those in the cache: x (B, T, C) -> (B, T, C).

        If the chunk asks for the last tokens alone, only these come out: (B, 1, C).
        """
        h = self.attention.extend(self.attention_norm(x), cache, layer, chunk)
        if chunk.last is not None:
            x = x[chunk.rows, chunk.last]
        x = x + h
        return x + self.mlp(self.mlp_norm(x))


def causal_mask(max_seq: int) -> Tensor:
    """The additive attention mask (max_seq, max_seq): row t is 0 up to column t (look) and -inf after it (do not).

    `tril` marks what a token may see. `nn.MultiheadAttention` reads a boolean mask the other way round (True =
    blocked), so the mask is made additive, which means the same everywhere.
    """
    may_look = torch.tril(torch.ones(max_seq, max_seq)).bool()
    return torch.zeros(max_seq, max_seq).masked_fill(~may_look, -math.inf)


def sinusoids(max_seq: int, embed_dim: int) -> Tensor:
    """A row per position (max_seq, embed_dim) of sines, then cosines, with mean square 1 (Vaswani et al. 2017).

    The wavelengths form a geometric series from 2 pi to 4 max_seq, so no two positions in the window look alike.
    """
    waves = -(-embed_dim // 2)  # half of embed_dim, rounded up
    frequencies = (2 * max_seq / math.pi) ** (-torch.arange(waves) / waves)
    angles = torch.arange(max_seq)[:, None] * frequencies  # (max_seq, waves)
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)[:, :embed_dim]


class TinyGPT(nn.Module):
    """The whole decoder: ids (B, T) -> logits (B, T, V), where logits[:, t] predicts the token at t + 1."""

    def __init__(self, config: TinyGPTConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        self.position_embedding = nn.Embedding(config.max_seq, config.embed_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.embed_dim)
        self.head = nn.Linear(config.embed_dim, config.vocab_size)
        self.register_buffer("causal_mask", causal_mask(config.max_seq), persistent=False)
        if self.head.weight.device.type != "meta":  # there, only the shapes are wanted
            self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """GPT-2's first weights (Radford et al. 2019): N(0, 0.02²), so small that the first loss is ln V.

        2 x num_layers branches add to the residual stream: shrink the end of each, so that their sum stays as small.
        """
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)
                if name.endswith(("out_proj.weight", "mlp.2.weight")):
                    p /= math.sqrt(2 * self.config.num_layers)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    @torch.no_grad()
    def init_sinusoid(self) -> None:
        """Other first weights: positions as sinusoids, larger embeddings, Xavier (Glorot & Bengio 2010) for the blocks.

        Neighbours are alike from the first step on, and the slow first part of training, in which attention finds out
        who is next to whom, all but disappears.
        """
        nn.init.normal_(self.token_embedding.weight, std=0.1)
        self.position_embedding.weight.copy_(0.1 * sinusoids(self.config.max_seq, self.config.embed_dim))
        for block in self.blocks:
            for third in block.attention.in_proj_weight.chunk(3):  # q, k and v: three square matrices in one
                nn.init.xavier_uniform_(third)
            for weight in (block.attention.out_proj.weight, block.mlp[0].weight, block.mlp[2].weight):
                nn.init.xavier_uniform_(weight)
            for branch_end in (block.attention.out_proj, block.mlp[2]):
                branch_end.weight /= math.sqrt(2 * self.config.num_layers)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """ids (B, T) of int64, 1 <= T <= max_seq -> logits (B, T, V).

        With a cache, the ids come after the tokens that it holds, and are added to it.
        Raises ValueError if the shape is wrong, the window is empty or too long, or an id is outside the vocabulary.
        """
        self.check_ids(ids)
        if cache is not None:
            return self.head(self.final_norm(self.extend(ids, cache, [ids.size(1)] * ids.size(0), last_only=False)))
        positions = torch.arange(ids.size(1), device=ids.device)
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))  # (B, T, C)
        mask = self.causal_mask[: ids.size(1), : ids.size(1)]
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.final_norm(x))

    def next_logits(self, ids: Tensor, cache: KVCache, lengths: list[int] | None = None) -> Tensor:
        """Logits (B, V) after the last of ids (B, T), which are added to the cache: all that generation needs.

        In a ragged batch only the first lengths[b] of ids[b] are tokens, the rest is padding: the causal mask keeps it
        from the tokens before it, and later tokens take its slots. Raises ValueError like `forward`.
        """
        self.check_ids(ids)
        x = self.extend(ids, cache, lengths or [ids.size(1)] * ids.size(0), last_only=True)
        return self.head(self.final_norm(x))[:, 0]

    def extend(self, ids: Tensor, cache: KVCache, lengths: list[int], last_only: bool) -> Tensor:
        """Add lengths[b] of ids[b] to the cache -> the residual stream (B, T, C), or (B, 1, C) at the last tokens."""
        starts, time = cache.lengths, ids.size(1)
        end = max(starts) + time
        if len(starts) != ids.size(0) or end > cache.max_seq:
            raise ValueError(f"ids {tuple(ids.shape)} do not fit behind {starts} tokens in a cache of {cache.max_seq}")
        chunk = self.place_chunk(starts, time, end, ids.device)
        positions = self.position_embedding.weight[chunk.slots]
        x = self.token_embedding(ids) + positions
        cache.lengths = [start + length for start, length in zip(starts, lengths, strict=True)]
        for layer, block in enumerate(self.blocks[:-1]):
            x = block.extend(x, cache, layer, chunk)
        if last_only:  # nothing reads the other tokens' output of the last block
            chunk.last = torch.tensor(lengths, device=ids.device)[:, None] - 1
            reached = torch.tensor(cache.lengths, device=ids.device) - 1
            chunk.mask = self.causal_mask[reached, None, None, :end]
        return self.blocks[-1].extend(x, cache, len(self.blocks) - 1, chunk)

    def place_chunk(self, starts: list[int], time: int, end: int, device: torch.device) -> Chunk:
        """The chunk of `time` tokens behind starts[b] tokens of row b."""
        rows = torch.arange(len(starts), device=device)[:, None]
        if min(starts) == max(starts):
            slots = slice(starts[0], end)
            return Chunk(rows, slots, end, None if time == 1 else self.causal_mask[slots, :end])
        slots = torch.tensor(starts, device=device)[:, None] + torch.arange(time, device=device)  # (B, T)
        return Chunk(rows, slots, end, self.causal_mask[slots, :end][:, None])

    def check_ids(self, ids: Tensor) -> None:
        """Raise ValueError if `forward` cannot take these ids."""
        if ids.ndim != 2 or ids.numel() == 0:
            raise ValueError(f"ids must have shape (batch, time), neither of them 0, not {tuple(ids.shape)}")
        if ids.size(1) > self.config.max_seq:
            raise ValueError(f"{ids.size(1)} tokens do not fit into max_seq {self.config.max_seq}: feed the last ones")
        if torch.compiler.is_compiling():
            return  # a look at the values would split the compiled graph
        low, high = (int(end) for end in ids.aminmax())
        if low < 0 or high >= self.config.vocab_size:
            wrong = low if low < 0 else high
            raise ValueError(f"token id {wrong} is outside the vocabulary of {self.config.vocab_size} tokens")

    def num_parameters(self) -> int:
        """How many numbers training adjusts."""
        return sum(p.numel() for p in self.parameters())


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token: logits (B, T, V) against the next tokens (B, T).

    Computed in float32, whatever the logits' precision. Raises ValueError if the shapes do not match.
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} do not match")
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
