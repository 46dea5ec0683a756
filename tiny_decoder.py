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
    dropout: float = 0.0  # probability of zeroing, on embeddings, attention weights and both residual branches

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
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be a number from 0 up to, not including, 1, not {self.dropout!r}")


class DecoderBlock(nn.Module):
    """One layer: causal self-attention, then a two-layer MLP, each behind a LayerNorm and added to the residual."""

    def __init__(self, config: TinyGPTConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.embed_dim)
        self.attention = nn.MultiheadAttention(
            config.embed_dim, config.num_heads, dropout=config.dropout, batch_first=True
        )
        self.mlp_norm = nn.LayerNorm(config.embed_dim)
        self.mlp = nn.Sequential(
            nn.Linear(config.embed_dim, 4 * config.embed_dim),
            nn.GELU(approximate="tanh"),  # GPT-2's approximation
            nn.Linear(4 * config.embed_dim, config.embed_dim),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, C), mask (T, T) additive -> (B, T, C)."""
        h = self.attention_norm(x)
        # Asking for the weights picks plain matrix products over the flash kernel. On CPUs that is the faster way:
        # training steps take a fifth less time in bfloat16 (4 layers x 256, 16 windows of 256).
        plain = x.device.type == "cpu"
        h, _ = self.attention(
            h, h, h, attn_mask=mask, need_weights=plain, average_attn_weights=False, is_causal=not plain
        )
        x = x + self.dropout(h)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


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
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Xavier (Glorot & Bengio 2010) for the projections; small embeddings and head, so the first loss is ln V.

        The positions start as sinusoids, not as noise: neighbours are alike from the first step on, and the slow first
        part of training, in which attention finds out who is next to whom, all but disappears.
        """
        nn.init.normal_(self.token_embedding.weight, std=0.1)
        self.position_embedding.weight.copy_(0.1 * sinusoids(self.config.max_seq, self.config.embed_dim))
        for block in self.blocks:
            for third in block.attention.in_proj_weight.chunk(3):  # q, k and v: three square matrices in one
                nn.init.xavier_uniform_(third)
            for linear in (block.attention.out_proj, block.mlp[0], block.mlp[2]):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)
            nn.init.zeros_(block.attention.in_proj_bias)
            # 2 x num_layers branches add to the residual stream: shrink each, so that their sum starts near size 1.
            for branch_end in (block.attention.out_proj, block.mlp[2]):
                branch_end.weight /= math.sqrt(2 * self.config.num_layers)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) of int64, 1 <= T <= max_seq -> logits (B, T, V).

        Raises ValueError if the shape is wrong, the window is empty or too long, or an id is outside the vocabulary.
        """
        self.check_ids(ids)
        positions = torch.arange(ids.size(1), device=ids.device)
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))  # (B, T, C)
        mask = self.causal_mask[: ids.size(1), : ids.size(1)]
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.final_norm(x))

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
