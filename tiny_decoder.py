"""TinyGPT: a decoder-only transformer, from attention to the whole model.

Shapes: B batch, T time (tokens in the window), C embed_dim, nh num_heads, hs = C / nh, L num_layers,
V vocab_size.

    ids (B, T) -> token + position embedding -> num_layers x DecoderBlock -> LayerNorm -> linear head -> (B, T, V)

The vector x of each position is called the residual stream. It runs from the embeddings to the head, and every
attention and every MLP only adds to it (He et al. 2015): the gradient of the loss reaches the first layer through these
sums without shrinking. LayerNorm rescales the vector of each position to mean 0 and variance 1, then weights its
numbers. Here it comes before each attention and each MLP, x + f(norm(x)); in the first transformer it came after the
sum, norm(x + f(x)). Such "pre-norm" stacks train well with a short warm-up or none (Xiong et al. 2020,
https://arxiv.org/abs/2002.04745).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PLAIN_LIMIT = 512  # tokens, up to which `attend` may hold the weights of all pairs of tokens in memory


@dataclass(frozen=True)
class TinyGPTConfig:
    """The shape of the network. embed_dim, num_heads and bias are those of `nn.MultiheadAttention`, whose `dropout` is
    attention_dropout here.

    The defaults have biases, the exact GELU and a head of its own. With `gelu="tanh", tie_embeddings=True` the network
    is GPT-2's; with `bias=False, tie_embeddings=True` it is nanoGPT's. The head never has a bias.
    Raises ValueError that names the field if a value is out of range.
    """

    vocab_size: int
    max_seq: int  # the longest window that the model can read, in tokens
    embed_dim: int
    num_heads: int
    num_layers: int
    dropout: float = 0.0  # probability of zeroing, on the embeddings and on what attention and MLP add
    attention_dropout: float = 0.0  # the same on the attention weights
    bias: bool = True  # whether linear layers and norms, except the head, have a bias
    gelu: str = "exact"  # or "tanh", GPT-2's approximation
    tie_embeddings: bool = False  # whether the head uses the token embedding's weights

    def __post_init__(self):
        for name in ("vocab_size", "max_seq", "embed_dim", "num_heads", "num_layers"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number from 1 up, not {value!r}")
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


class CausalSelfAttention(nn.MultiheadAttention):
    """Every position gathers information from itself and the positions before it (Vaswani et al. 2017).

    Each position makes three vectors. Its query says what it looks for, its key what it can be found by, its value what
    it hands over. A query's products with all keys say how well each fits; softmax turns them into weights that sum
    to 1; the result is the mean of the values, weighted so:

        softmax(q kᵀ / sqrt(hs) + mask) v

    A product of a query and a key sums hs terms; if these are independent with variance 1, its standard deviation is
    sqrt(hs). Divided by it, scores stay so small that softmax still has a gradient. The mask adds -inf where a key
    comes later than the query: exp(-inf) is 0, so nothing flows back from the future. One query can look for one thing
    at a time; with several heads, each with hs of the C numbers, a position looks for several.

    `nn.MultiheadAttention(…, batch_first=True)` provides the parameters, which TinyGPT initialises:

        in_proj_weight (3C, C), in_proj_bias (3C)    the linear maps to queries, keys and values, one below the other;
                                                     as in nn.Linear, y = x Wᵀ + b
        out_proj       nn.Linear(C, C)               mixes what the heads found

    The arithmetic is written out here, to be read, and so that a cache can stand in for earlier tokens. A test holds it
    equal to the parent's own, called with `attn_mask`.
    """

    fused = True  # see `compare`

    def forward(self, x: Tensor, mask: Tensor, cache: Tensor | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C).

        mask: added to the scores, (T, slots) or (B, 1, T, slots); slots is T without a cache. cache: the keys and
        values (2, B, nh, slots, hs) of all tokens so far; the last T slots are for those of x, and are filled here.
        """
        qkv = self.project(x)
        q, k, v = qkv
        if cache is not None:
            cache[:, :, :, -x.size(1) :] = qkv[1:]  # (2, B, nh, T, hs)
            k, v = cache
        h = self.attend(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.out_proj(h.transpose(1, 2).flatten(2))  # heads side by side again (B, T, C), and mixed

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values of x (B, T, C), cut into heads: (3, B, nh, T, hs)."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # (B, T, 3C)
        return qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
        """What `weigh` computes. PyTorch has the same in one call, which is faster, except on a CPU in bfloat16, and
        does not hold the weights of all pairs of tokens in memory."""
        if self.fused and (q.device.type != "cpu" or q.dtype != torch.bfloat16 or q.size(2) > PLAIN_LIMIT):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.weigh(q, k, v, mask, dropout)

    def compare(self) -> None:
        """Let `attend` use its kernel only if that computes what `weigh` says: once you change `weigh`, yours runs.

        It compares 64 tokens when a model is made or loaded, without dropout: if yours differs only elsewhere, set
        fused = False.
        """
        qkv, mask = torch.arange(3.0 * 64 * self.embed_dim).sin().view(3, 1, self.num_heads, 64, -1), causal_mask(64)
        self.fused = self.weigh(*qkv, mask).allclose(F.scaled_dot_product_attention(*qkv, mask), 0, 1e-5)

    def weigh(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
        """softmax(q kᵀ / sqrt(hs) + mask) v: q (B, nh, T, hs), k and v (B, nh, slots, hs) -> (B, nh, T, hs)."""
        scores = q / math.sqrt(q.size(-1)) @ k.mT + mask.to(q.dtype)  # (B, nh, T, slots)
        weights = F.dropout(scores.softmax(dim=-1), dropout)
        return weights @ v


class MLP(nn.Module):
    """Two linear layers with a GELU between them, at every position by itself.

    Attention moves information between positions; this works on what has arrived. The hidden layer is four times as
    wide as the stream: a convention since the first transformer (Vaswani et al. 2017). Without a non-linear function
    between them, the two layers would be one. GELU(x) = x · P(X <= x) for a standard normal X: almost x where x is
    large, almost 0 where it is very negative, and smooth between, without ReLU's kink (Hendrycks & Gimpel 2016).
    """

    def __init__(self, config: TinyGPTConfig):
        super().__init__()
        self.up = nn.Linear(config.embed_dim, 4 * config.embed_dim, bias=config.bias)
        self.gelu = nn.GELU("none" if config.gelu == "exact" else "tanh")
        self.down = nn.Linear(4 * config.embed_dim, config.embed_dim, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        return self.down(self.gelu(self.up(x)))


class DecoderBlock(nn.Module):
    """One layer: causal self-attention, then the MLP; each reads the normalised stream and adds to it."""

    def __init__(self, config: TinyGPTConfig):
        super().__init__()
        width, bias = config.embed_dim, config.bias
        self.attention_norm = nn.LayerNorm(width, bias=bias)
        self.attention = CausalSelfAttention(
            width, config.num_heads, dropout=config.attention_dropout, bias=bias, batch_first=True
        )
        self.mlp_norm = nn.LayerNorm(width, bias=bias)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor, cache: Tensor | None = None) -> Tensor:
        """x (B, T, C), mask and cache as in `CausalSelfAttention.forward` -> (B, T, C)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, cache))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


def causal_mask(max_seq: int) -> Tensor:
    """The additive attention mask (max_seq, max_seq): row t is 0 up to column t (visible) and -inf after it (hidden).

    `tril` marks what a token may see. `nn.MultiheadAttention` reads a boolean mask the other way round (True =
    blocked), so the mask is made additive, which means the same everywhere.
    """
    visible = torch.tril(torch.ones(max_seq, max_seq, dtype=torch.bool, device="cpu"))
    return torch.where(visible, 0.0, -math.inf)


def sinusoids(max_seq: int, embed_dim: int) -> Tensor:
    """A row per position (max_seq, embed_dim) of sines, then cosines, with mean square 1 (if embed_dim is even).

    Like those of Vaswani et al. 2017, but the wavelengths fit the window: a geometric series from 2 pi towards
    4 max_seq, so no two positions in the window look alike.
    """
    waves = math.ceil(embed_dim / 2)
    frequencies = (2 * max_seq / math.pi) ** (-torch.arange(waves) / waves)
    angles = torch.arange(max_seq)[:, None] * frequencies  # (max_seq, waves)
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)[:, :embed_dim]


class TinyGPT(nn.Module):
    """The whole decoder: ids (B, T) -> logits (B, T, V), where logits[:, t] predicts the token at t + 1."""

    def __init__(self, config: TinyGPTConfig, init: str | None = "normal"):
        """init: the initial weights, "normal" or "sinusoid"; None leaves the embeddings zero, for loaders of weights.

        Raises ValueError for another init.
        """
        super().__init__()
        self.config = config
        width = config.embed_dim
        # Two tables, nn.Embedding(rows, width), of zeros at first: random numbers come from `init`, and loaders, which
        # bring their own, start faster.
        self.token_embedding = nn.Embedding.from_pretrained(torch.zeros(config.vocab_size, width), freeze=False)
        self.position_embedding = nn.Embedding.from_pretrained(torch.zeros(config.max_seq, width), freeze=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(width, bias=config.bias)
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        self.tie()
        self.register_buffer("causal_mask", causal_mask(config.max_seq), persistent=False)
        if init == "normal":
            self.init_normal()
        elif init == "sinusoid":
            self.init_sinusoid()
        elif init is not None:
            raise ValueError(f'init must be "normal", "sinusoid" or None, not {init!r}')

    def tie(self) -> None:
        """Share the token embedding's weights with the head, if the config says so, and let attention check its kernel.
        Call it again after `load_state_dict(…, assign=True)`, which puts a new parameter in each place."""
        if self.config.tie_embeddings:
            self.head.weight = self.token_embedding.weight
        for block in self.blocks if not self.head.weight.is_meta else []:  # on "meta" there are only shapes
            block.attention.compare()

    @torch.no_grad()
    def init_normal(self) -> None:
        """GPT-2's initial weights (Radford et al. 2019): N(0, 0.02²), so small that all logits are close to 0, all
        tokens equally likely, and the first loss is ln V: the model begins without an opinion.

        2 x num_layers branches add to the residual stream, and the variance of a sum of independent terms is the sum of
        their variances. So the last matrix of each branch is divided by sqrt(2 num_layers): the stream does not grow
        with depth.
        """
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)
                if name.endswith(("out_proj.weight", "mlp.down.weight")):
                    p /= math.sqrt(2 * self.config.num_layers)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    @torch.no_grad()
    def init_sinusoid(self) -> None:
        """Other initial weights: positions as sinusoids, larger embeddings, Xavier (Glorot & Bengio 2010) for blocks.

        Neighbouring positions have similar embeddings from the start, so attention need not learn first which tokens
        are neighbours.
        """
        self.init_normal()
        nn.init.normal_(self.token_embedding.weight, std=0.1)
        self.position_embedding.weight.copy_(0.1 * sinusoids(self.config.max_seq, self.config.embed_dim))
        for block in self.blocks:
            for third in block.attention.in_proj_weight.chunk(3):  # q, k and v: three square matrices in one
                nn.init.xavier_uniform_(third)
            for weight in (block.attention.out_proj.weight, block.mlp.up.weight, block.mlp.down.weight):
                nn.init.xavier_uniform_(weight)
            for branch_end in (block.attention.out_proj, block.mlp.down):
                branch_end.weight /= math.sqrt(2 * self.config.num_layers)

    def forward(self, ids: Tensor, cache: "KVCache | None" = None, last_only: bool = False) -> Tensor:
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
        mask = self.causal_mask[start:end, :end]  # (T, slots)
        if cache is not None and cache.padding is not None:
            positions, mask = cache.skip_padding(positions, mask)
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))  # (B, T, C)
        for i, block in enumerate(self.blocks):
            x = block(x, mask, None if cache is None else cache.memory[i, :, :, :, :end])
        if cache is not None:
            cache.length = end
        return self.head(self.final_norm(x[:, -1:] if last_only else x))

    def num_parameters(self) -> int:
        """The number of parameters, frozen ones included; a tied weight counts once."""
        return sum(p.numel() for p in self.parameters())


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy per token, in nats (natural logarithms): logits (B, T, V) against the next tokens (B, T).

    For one token it is -ln p, where softmax of the logits gave the true next token the probability p: 0 if the model
    was certain and right, ln V if all tokens were equally likely to it (Shannon 1948).
    Computed in float32, whatever the logits' precision. Raises ValueError if the shapes do not match.
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} do not match")
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class KVCache:
    """The keys and values of every layer for a batch of texts, so that a new token does not read the others again.

    All rows write to the same slot. Shorter texts are padded on the left: the first `padding[b]` slots of
    row b are never looked at, and its positions count from there. Positions are learned and added to the embeddings,
    so a key is bound to its position: when a window moves, the cache must be filled anew.
    """

    def __init__(self, model: TinyGPT, batch_size: int):
        config, like = model.config, model.token_embedding.weight
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

    def skip_padding(self, positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (T,) and mask (T, slots) -> (B, T) and (B, 1, T, slots), for rows whose first padding[b] slots hold
        no token.

        The padding itself has position 0 and sees only itself: softmax of nothing but -inf is NaN, and the next layer
        would spread it to the real tokens, because 0 times NaN is NaN.
        """
        slots = torch.arange(mask.size(1), device=mask.device)
        hidden = (slots < self.padding[:, None])[:, None] & (slots != positions[:, None])  # (B, T, slots)
        return (positions - self.padding[:, None]).clamp(min=0), mask.masked_fill(hidden, -math.inf)[:, None]
