"""TinyGPT: a decoder-only transformer, from the attention leaf to the whole model.

Shapes: B batch, T time (tokens in the window), C embed_dim, nh num_heads, hs = C / nh, L num_layers,
V vocab_size.

The order is GPT-2's (Radford et al. 2019): the input of every sub-layer is normalised ("pre-norm") and its
output is added to the residual stream x, which runs from the embeddings to the head:

    ids (B, T) -> token + position embedding -> num_layers x DecoderBlock -> LayerNorm -> linear head -> (B, T, V)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# On a CPU in bfloat16, plain products train faster than the fused kernel; for longer windows they take too much memory.
PLAIN_LIMIT = 512
# Upper bounds, which keep a damaged or hostile checkpoint from asking for more memory than any machine has.
LIMITS = {"vocab_size": 2**24, "max_seq": 2**14, "embed_dim": 2**14, "num_heads": 2**10, "num_layers": 2**10}


@dataclass(frozen=True)
class TinyGPTConfig:
    """The shape of the network. embed_dim, num_heads and bias are those of `nn.MultiheadAttention`, whose `dropout` is
    attention_dropout here.

    The defaults have biases, the exact GELU and a head of its own. With `gelu="tanh", tie_embeddings=True` the network
    is GPT-2's; with `bias=False, tie_embeddings=True` it is nanoGPT's. The head never has a bias.
    Raises ValueError that names the field if a value is out of range.
    """

    vocab_size: int
    max_seq: int  # the longest window that the model can look at, in tokens
    embed_dim: int
    num_heads: int
    num_layers: int
    dropout: float = 0.0  # probability of zeroing, on the embeddings and both residual branches
    attention_dropout: float = 0.0  # the same on the attention weights
    bias: bool = True  # whether linear layers and norms, except the head, have a bias
    gelu: str = "exact"  # or "tanh", GPT-2's approximation
    tie_embeddings: bool = False  # whether the head uses the token embedding's weights

    def __post_init__(self):
        for name, most in LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name} must be a whole number from 1 to {most}, not {value!r}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim ({self.embed_dim}) must be divisible by num_heads ({self.num_heads})")
        for name in ("dropout", "attention_dropout"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise ValueError(f"{name} must be a number from 0 up to, not including, 1, not {value!r}")
        for name in ("bias", "tie_embeddings"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")
        if self.gelu not in ("exact", "tanh"):
            raise ValueError(f'gelu must be "exact" or "tanh", not {self.gelu!r}')


class KVCache:
    """The keys and values of every layer for a batch of texts, so that a new token does not read the others again.

    All rows share the slot that is written next. Shorter texts are padded on the left: the first `padding[b]` slots of
    row b are never looked at, and its positions count from there. Positions are learned and added to the embeddings,
    so a key is bound to its position: when a window moves, the cache must be filled anew.
    """

    def __init__(self, model: "TinyGPT", batch_size: int):
        config, like = model.config, model.position_embedding.weight
        shape = (batch_size, config.num_heads, config.max_seq, config.embed_dim // config.num_heads)
        # Zeros, because a masked slot counts 0 times its value, and 0 times whatever memory held might be NaN.
        self.memory = like.new_zeros(config.num_layers, 2, *shape)  # (L, 2, B, nh, max_seq, hs); 2: keys and values
        self.length = 0  # how many slots are filled, padding included
        self.padding: Tensor | None = None  # (B,), or None if no row is padded

    def clear(self, padding: list[int]) -> None:
        """Forget all tokens; what comes next has so many slots of padding at the left of each row."""
        self.length = 0
        self.padding = torch.tensor(padding, device=self.memory.device) if any(padding) else None

    def reorder(self, rows: list[int]) -> None:
        """Row i becomes what row rows[i] was, in place: for beams that fork and die. The batch keeps its size."""
        for layer in self.memory:  # (2, B, nh, max_seq, hs)
            layer[:, :, :, : self.length] = layer[:, rows, :, : self.length]
        self.padding = None if self.padding is None else self.padding[rows]


class CausalSelfAttention(nn.MultiheadAttention):
    """Every position gathers values from itself and those before it, weighted by how well its query fits their keys.

    Of `nn.MultiheadAttention(…, batch_first=True)` it uses the parameters, their names and initial values, and
    `out_proj`; a test holds its result equal to the parent's, called with `attn_mask`. The arithmetic is written out
    here, to be read, and so that a cache can stand in for the keys and values of earlier tokens.
    """

    def forward(self, x: Tensor, mask: Tensor | None, cache: Tensor | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C).

        cache: keys and values (2, B, nh, slots, hs); the last T slots are x's own, to be filled here. mask: additive,
        (T, slots) or (B, 1, T, slots), or None where everything may be looked at; slots is T without a cache.
        """
        qkv = self.project(x)
        q, k, v = qkv
        dropout = self.dropout if self.training else 0.0
        if cache is not None:  # while sampling: the earlier tokens' keys and values are there, and nothing is dropped
            cache[:, :, :, -x.size(1) :] = qkv[1:]
            k, v = cache
            h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        elif q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.size(2) <= PLAIN_LIMIT:
            h = self.attend(q, k, v, mask, dropout)
        else:  # is_causal is the mask once more, by a name that lets a GPU take its fastest kernel
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        return self.out_proj(h.transpose(1, 2).flatten(2))  # heads side by side again, and mixed

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values of x (B, T, C), cut into heads: (3, B, nh, T, hs)."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # (B, T, 3C)
        return qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
        """softmax(q kᵀ / sqrt(hs) + mask) v in plain products, all (B, nh, T, hs).

        The fused kernel gives the same without holding the (B nh, T, T) weights in memory.
        """
        scores = torch.baddbmm(mask, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=q.size(-1) ** -0.5)
        weights = F.dropout(scores.softmax(dim=-1), dropout)  # (B nh, T, T)
        return torch.bmm(weights, v.flatten(0, 1)).view_as(q)


class DecoderBlock(nn.Module):
    """One layer: causal self-attention, then a two-layer MLP, each behind a LayerNorm and added to the residual."""

    def __init__(self, config: TinyGPTConfig):
        super().__init__()
        width, bias = config.embed_dim, config.bias
        self.attention_norm = nn.LayerNorm(width, bias=bias)
        self.attention = CausalSelfAttention(
            width, config.num_heads, dropout=config.attention_dropout, bias=bias, batch_first=True
        )
        self.mlp_norm = nn.LayerNorm(width, bias=bias)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=bias),
            nn.GELU("none" if config.gelu == "exact" else "tanh"),
            nn.Linear(4 * width, width, bias=bias),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Tensor | None = None) -> Tensor:
        """x (B, T, C), mask and cache as in `CausalSelfAttention.forward` -> (B, T, C)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, cache))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


def causal_mask(max_seq: int) -> Tensor:
    """The additive attention mask (max_seq, max_seq): row t is 0 up to column t (look) and -inf after it (do not).

    `tril` marks what a token may see. `nn.MultiheadAttention` reads a boolean mask the other way round (True =
    blocked), so the mask is made additive, which means the same everywhere.
    """
    may_look = torch.tril(torch.ones(max_seq, max_seq, dtype=torch.bool, device="cpu"))
    return torch.zeros(max_seq, max_seq, device="cpu").masked_fill(~may_look, -math.inf)


def sinusoids(max_seq: int, embed_dim: int) -> Tensor:
    """A row per position (max_seq, embed_dim) of sines, then cosines, with mean square 1 (Vaswani et al. 2017).

    The wavelengths form a geometric series from 2 pi towards 4 max_seq, so no two positions in the window look alike.
    """
    waves = math.ceil(embed_dim / 2)
    frequencies = (2 * max_seq / math.pi) ** (-torch.arange(waves) / waves)
    angles = torch.arange(max_seq)[:, None] * frequencies  # (max_seq, waves)
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)[:, :embed_dim]


class TinyGPT(nn.Module):
    """The whole decoder: ids (B, T) -> logits (B, T, V), where logits[:, t] predicts the token at t + 1.

    A new model's embeddings are zero: call `init_weights`, or load weights, before it is used.
    """

    def __init__(self, config: TinyGPTConfig):
        super().__init__()
        self.config = config
        width = config.embed_dim
        # from_pretrained, because nn.Embedding would draw random weights, which loading a model throws away again.
        self.token_embedding = nn.Embedding.from_pretrained(torch.zeros(config.vocab_size, width), freeze=False)
        self.position_embedding = nn.Embedding.from_pretrained(torch.zeros(config.max_seq, width), freeze=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(width, bias=config.bias)
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        self.tie()
        self.register_buffer("causal_mask", causal_mask(config.max_seq), persistent=False)

    def tie(self) -> None:
        """Let the head use the token embedding's weights, if the config says so; needed again after
        `load_state_dict(…, assign=True)`, which puts a new parameter in each place."""
        if self.config.tie_embeddings:
            self.head.weight = self.token_embedding.weight

    @torch.no_grad()
    def init_weights(self) -> "TinyGPT":
        """GPT-2's first weights (Radford et al. 2019): N(0, 0.02²), so small that the first loss is ln V.

        2 x num_layers branches add to the residual stream: the last matrix of each is divided by sqrt(2 num_layers),
        so that the sum does not grow with depth.
        Returns the model.
        """
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)
                if name.endswith(("out_proj.weight", "mlp.2.weight")):
                    p /= math.sqrt(2 * self.config.num_layers)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        return self

    @torch.no_grad()
    def init_sinusoid(self) -> "TinyGPT":
        """Other first weights: positions as sinusoids, larger embeddings, Xavier (Glorot & Bengio 2010) for the blocks.

        Neighbouring positions have similar embeddings from the start, so attention need not learn first which tokens
        are neighbours. Returns the model.
        """
        self.init_weights()
        nn.init.normal_(self.token_embedding.weight, std=0.1)
        self.position_embedding.weight.copy_(0.1 * sinusoids(self.config.max_seq, self.config.embed_dim))
        for block in self.blocks:
            for third in block.attention.in_proj_weight.chunk(3):  # q, k and v: three square matrices in one
                nn.init.xavier_uniform_(third)
            for weight in (block.attention.out_proj.weight, block.mlp[0].weight, block.mlp[2].weight):
                nn.init.xavier_uniform_(weight)
            for branch_end in (block.attention.out_proj, block.mlp[2]):
                branch_end.weight /= math.sqrt(2 * self.config.num_layers)
        return self

    def forward(self, ids: Tensor, cache: KVCache | None = None, last_only: bool = False) -> Tensor:
        """ids (B, T) of int64, 0 <= id < V -> logits (B, T, V), or (B, 1, V) after the last token with last_only.

        With a cache, the ids come after the tokens that it holds, and are added to it.
        Raises ValueError if the shape is wrong or the tokens do not fit into max_seq.
        """
        if ids.ndim != 2 or ids.numel() == 0:
            raise ValueError(f"ids must have shape (batch, time), neither of them 0, not {tuple(ids.shape)}")
        start = cache.length if cache is not None else 0
        end = start + ids.size(1)
        if end > self.config.max_seq:
            raise ValueError(f"{end} tokens do not fit into max_seq {self.config.max_seq}: feed the last ones")
        positions = torch.arange(start, end, device=ids.device)
        mask = self.causal_mask[start:end, :end]
        if cache is not None:
            if cache.padding is not None:
                positions, mask = self.skip_padding(positions, mask, cache.padding)
            elif ids.size(1) == 1:
                mask = None
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))  # (B, T, C)
        for i, block in enumerate(self.blocks):
            x = block(x, mask, None if cache is None else cache.memory[i, :, :, :, :end])
        if cache is not None:
            cache.length = end
        return self.head(self.final_norm(x[:, -1:] if last_only else x))

    def skip_padding(self, positions: Tensor, mask: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (B, T) and mask (B, 1, T, slots) of rows whose first padding[b] slots hold no token.

        The padding itself has position 0 and sees only itself: a query that sees nothing would give NaN, which the
        next layer would hand on to the real tokens as 0 times NaN.
        """
        slots = torch.arange(mask.size(1), device=mask.device)
        hidden = (slots < padding[:, None])[:, None] & (slots != positions[:, None])  # (B, T, slots)
        return (positions - padding[:, None]).clamp(min=0), mask.masked_fill(hidden, -math.inf)[:, None]

    def num_parameters(self) -> int:
        """The number of parameters, frozen ones included; a tied weight counts once."""
        return sum(p.numel() for p in self.parameters())


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token: logits (B, T, V) against the next tokens (B, T).

    Computed in float32, whatever the logits' precision. Raises ValueError if the shapes do not match.
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} do not match")
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
