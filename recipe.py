"""The training recipe: every setting with its default, the presets, the optimizers and the schedule."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from formats.checkpoint import check_tensors
from support import command as cli
from support.command import setting
from support.device import pick_dtype
from tiny_decoder import TinyGPT
from training.lora import TARGETS, LoRAConfig

AUTO = "auto"


@dataclass(frozen=True)
class TrainSettings:
    """Every flag of main.py. The defaults are the preset `small`; PRESETS says how the others differ."""

    data: str = setting(
        AUTO, "tinyshakespeare, gutenberg, synthetic, auto, a UTF-8 text, or a folder of them", group="files"
    )
    tokenizer: str = setting("char", "char, or a BPE vocabulary's file from tokenizer.py train", group="files")
    out: str = setting("checkpoints/tiny_decoder.pth", "where the best model goes", group="files")
    init_from: str | None = setting(None, "a model to fine-tune: its weights, shape and tokenizer", group="files")
    resume: bool = setting(False, "go on from the training state beside --out", group="files")

    preset: str = setting(
        AUTO, "a recipe to start from; the flags below change it (auto: base on a GPU, small elsewhere)",
        group="recipe", choices=(AUTO, "tiny", "small", "base", "best", "reference", "reference-cpu"),
    )  # fmt: skip
    max_seq: int = setting(256, "the window, in tokens", group="network", low=1, high=2**14)
    embed_dim: int = setting(192, "the width of the residual stream", group="network", low=1, high=2**14)
    num_heads: int = setting(3, "attention heads; must divide --embed-dim", group="network", low=1, high=2**10)
    num_layers: int = setting(4, "decoder blocks", group="network", low=1, high=2**10)
    dropout: float = setting(0.0, "probability of zeroing a number while training", group="network", low=0, below=1)
    attention_dropout: float = setting(0.0, "the same for attention weights", group="network", low=0, below=1)
    init: str = setting(
        "normal", "first weights: normal (GPT-2's) or sinusoid (Xavier's, and positions like their neighbours)",
        group="network", choices=("normal", "sinusoid"),
    )  # fmt: skip

    steps: int = setting(1200, "optimizer steps in all; the schedule ends there", group="training", low=1, high=10**9)
    stop_at: int | None = setting(
        None,
        "stop after this step and save; --resume goes on (default: run to the end)",
        group="training",
        low=1,
        high=10**9,
    )
    batch_size: int = setting(16, "windows per optimizer step", group="training", low=1, high=2**20)
    grad_accum: int = setting(1, "parts to split each batch into, to save memory", group="training", low=1, high=2**20)
    windows: str = setting(
        "epochs", "epochs (side by side, each text once an epoch, in random order) or random (each begins anywhere)",
        group="training", choices=("epochs", "random"),
    )  # fmt: skip
    token_noise: float = setting(
        0.0, "probability of reading a random token instead; falls to zero while the rate falls (0 with --init-from)",
        group="training", low=0, below=1,
    )  # fmt: skip
    optimizer: str = setting(
        "muon", "muon (for the hidden matrices; AdamW for the rest) or adamw (for all)", group="training",
        choices=("muon", "adamw"),
    )  # fmt: skip
    lr: float = setting(6e-3, "AdamW's peak learning rate", group="training", above=0, high=100)
    muon_lr: float = setting(0.02, "Muon's peak learning rate", group="training", above=0, high=100)
    muon_momentum: float = setting(0.9, "Muon's momentum", group="training", low=0, below=1)
    weight_decay: float = setting(0.1, "decoupled decay of the matrices", group="training", low=0, high=100)
    warmup: int = setting(24, "first steps, in which the rate rises to its peak", group="training", low=0, high=10**9)
    schedule: str = setting(
        "linear", "how the rate falls: linear, to zero, or cosine, to a tenth of its peak", group="training",
        choices=("linear", "cosine"),
    )  # fmt: skip
    decay: float = setting(
        1.0, "share of the steps, the last ones, in which rate and noise fall (0: never)", group="training",
        low=0, high=1,
    )  # fmt: skip
    average: float = setting(
        0.0, "validate and keep a moving average of the weights, of which a step leaves this share as it was (0: none)",
        group="training", low=0, below=1,
    )  # fmt: skip
    clip: float = setting(1.0, "largest norm of the gradient; a larger one is scaled down", group="training", above=0)
    eval_every: int = setting(120, "steps between evaluations", group="training", low=1, high=10**9)
    seed: int = setting(1337, "of initial weights, batches and dropout", group="training", low=0, high=2**31)

    lora_rank: int | None = setting(
        None, "with --init-from: freeze the model and train adapters of this rank", group="LoRA", low=1, high=2**14
    )
    lora_alpha: float = setting(16.0, "an adapter's effect is scaled by alpha / rank", group="LoRA", above=0, high=1e6)
    lora_dropout: float = setting(0.0, "probability of dropping an adapter's input", group="LoRA", low=0, below=1)
    lora_targets: str = setting(",".join(TARGETS), "which matrices of a block, joined by commas", group="LoRA")

    device: str = setting(AUTO, "cpu, cuda, cuda:1, mps, or auto: the first of cuda, mps, cpu", group="machine")
    dtype: str = setting(
        AUTO, "precision of the matrix products (auto: bfloat16 where the hardware has it)", group="machine",
        choices=(AUTO, "float32", "bfloat16"),
    )  # fmt: skip
    compile: bool | None = setting(None, "torch.compile (default: on NVIDIA GPUs)", group="machine")

    def __post_init__(self):
        cli.validate(self)
        if self.embed_dim % self.num_heads:
            raise ValueError(f"--embed-dim {self.embed_dim} must be divisible by --num-heads {self.num_heads}")
        if self.batch_size % self.grad_accum:
            raise ValueError(f"--batch-size {self.batch_size} must be divisible by --grad-accum {self.grad_accum}")
        if self.lora_rank and not self.init_from:
            raise ValueError("--lora-rank needs --init-from: adapters change a model that is there")
        if not self.lora_rank:
            for name in ("lora_alpha", "lora_dropout", "lora_targets"):
                if getattr(self, name) != getattr(TrainSettings, name):
                    raise ValueError(f"{cli.flag_of(name)} needs --lora-rank")
        self.lora_config()

    def lora_config(self) -> LoRAConfig | None:
        """The adapters that the flags ask for; ValueError if they make no sense."""
        targets = tuple(self.lora_targets.split(","))
        return LoRAConfig(self.lora_rank, self.lora_alpha, targets, self.lora_dropout) if self.lora_rank else None


# What nanoGPT's config/train_shakespeare_char.py and the variant for CPUs in its README have in common, in float32,
# which it uses on CPUs. Unlike ours, its head shares the token embedding's weights, nothing has a bias, and it takes
# the validation loss from random windows.
NANOGPT = dict(
    dropout=0.0, attention_dropout=0.0, init="normal", windows="random", token_noise=0.0, optimizer="adamw", lr=1e-3,
    weight_decay=0.1, schedule="cosine", decay=1.0, average=0.0, clip=1.0, eval_every=250, dtype="float32",
)  # fmt: skip

# What each preset changes of the defaults above.
PRESETS = {
    "tiny": dict(
        max_seq=64, embed_dim=192, num_heads=3, num_layers=2, init="sinusoid", batch_size=32, steps=180, eval_every=20,
        windows="random", lr=0.01, muon_lr=0.05, muon_momentum=0.85, weight_decay=0.2, warmup=4,
    ),
    "small": {},
    "base": dict(
        embed_dim=384, num_heads=6, num_layers=6, batch_size=64, dropout=0.2, steps=2000, warmup=40, eval_every=250
    ),
    "best": dict(
        max_seq=512, embed_dim=256, num_heads=4, num_layers=6, dropout=0.15, init="sinusoid", batch_size=8, steps=8400,
        warmup=168, decay=0.4, eval_every=400, token_noise=0.1, average=0.998,
    ),
    "reference": NANOGPT | dict(
        embed_dim=384, num_heads=6, num_layers=6, batch_size=64, dropout=0.2, attention_dropout=0.2,
        steps=5000, warmup=100,
    ),
    "reference-cpu": NANOGPT | dict(
        max_seq=64, embed_dim=128, num_heads=4, num_layers=4, batch_size=12, steps=2000, warmup=100
    ),
}  # fmt: skip


def fall_progress(step: int, settings: TrainSettings) -> float:
    """How far the fall of rate and noise has come: 0 until it begins, 1 at the end."""
    start = max(1, settings.warmup, round((1 - settings.decay) * settings.steps))
    return min(1.0, max(0, step - start) / max(1, settings.steps - start))


def lr_factor(step: int, settings: TrainSettings) -> float:
    """The learning rate at `step` as a share of its peak: a linear rise (warm-up), the peak, then the schedule's fall.

    Falling all the way to zero lets the last steps settle; the cosine to a tenth is the field's older habit.
    """
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    progress = fall_progress(step, settings)
    if settings.schedule == "cosine":
        return 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2
    return 1 - progress


def noise_share(step: int, settings: TrainSettings) -> float:
    """The share of input tokens that are replaced at `step`: it falls to zero while the rate falls.

    A text that is never twice the same is harder to learn by heart; noise that is kept to the last step would leave the
    model too cautious.
    """
    return settings.token_noise * (1 - fall_progress(step, settings))


def least_memory(settings: TrainSettings, vocab_size: int) -> int:
    """A lower bound on the bytes that training holds at once, for refusing what cannot fit.

    Weights, gradients and one optimizer state; the mask; and what a forward pass keeps for the backward pass: per token
    and layer at least 16 x embed_dim numbers of 2 bytes, per token the logits.
    """
    width, layers, window = settings.embed_dim, settings.num_layers, settings.max_seq
    parameters = 12 * layers * width**2 + (2 * vocab_size + window) * width
    tokens = settings.batch_size // settings.grad_accum * window
    return 12 * parameters + 4 * window**2 + tokens * (2 * 16 * layers * width + 4 * vocab_size)


def orthogonalize(updates: Tensor, dtype: torch.dtype = torch.bfloat16, steps: int = 5) -> Tensor:
    """Push every singular value of a batch of matrices (N, rows, columns) towards 1, with products in dtype.

    A Newton-Schulz iteration with the coefficients of Muon (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/): five rounds bring the singular values into about 0.7 to 1.2.
    """
    x = updates.to(dtype)
    tall = x.size(-2) > x.size(-1)
    x = (x.mT if tall else x).contiguous()  # left transposed, it would slow down every product
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return (x.mT if tall else x).to(updates.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each hidden matrix is made orthogonal (Jordan et al. 2024), with decoupled weight decay.

    `torch.optim.Muon` sees the packed q, k, v projection as one matrix and takes the matrices one by one; here the
    three are treated as three, and matrices of one shape are orthogonalized in one batch.
    """

    def __init__(
        self, params, lr: float, momentum: float, weight_decay: float = 0.0, dtype: torch.dtype = torch.bfloat16
    ):
        """params: groups of matrices; a group's "parts" says into how many each is cut, by rows (1 unless given).

        dtype: the precision of the iteration's products, which bears bfloat16 well where that is fast.
        """
        self.dtype = dtype
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "parts": 1})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update every matrix (rows, columns) that has a gradient."""
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p not in self.state:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum"]
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(momentum, group["momentum"])  # Nesterov's look ahead
                for part, change in zip(p.chunk(group["parts"]), update.chunk(group["parts"]), strict=True):
                    by_shape.setdefault(part.shape, []).append((part, change))
            for (rows, columns), pairs in by_shape.items():
                changes = orthogonalize(torch.stack([change for _, change in pairs]), self.dtype)
                scale = group["lr"] * math.sqrt(max(1, rows / columns))
                for (part, _), change in zip(pairs, changes, strict=True):
                    part.mul_(1 - group["lr"] * group["weight_decay"])
                    part.sub_(change, alpha=scale)


def make_optimizers(model: TinyGPT, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices and AdamW for embeddings, norms, biases and head, or AdamW for all.

    Each parameter group keeps its peak learning rate under "peak_lr". Weight decay is for matrices only; beside Muon,
    for the hidden ones only.
    """
    hidden = [p for p in model.blocks.parameters() if p.ndim == 2] if settings.optimizer == "muon" else []
    ids = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in ids]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": 0.0 if hidden else settings.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=settings.lr,
        betas=(0.9, 0.99),
        fused=True,
    )
    optimizers = [adamw]
    if hidden:
        packed = [block.attention.in_proj_weight for block in model.blocks]
        packed_ids = {id(p) for p in packed}
        single = [p for p in hidden if id(p) not in packed_ids]
        groups = [{"params": packed, "parts": 3}, {"params": single}]
        dtype = pick_dtype(settings.dtype, model.head.weight.device)
        optimizers.append(Muon(groups, settings.muon_lr, settings.muon_momentum, settings.weight_decay, dtype))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


# What each optimizer keeps for a parameter; "step" is a single number, the others have the parameter's shape.
KEPT = {torch.optim.AdamW: ("exp_avg", "exp_avg_sq", "step"), Muon: ("momentum",)}


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: object, step: int) -> None:
    """Give a fresh optimizer what a saved one kept after `step` steps: {parameter's index: {name: tensor}}.

    The rates and other settings stay the fresh one's. Raises ValueError if the tensors do not fit the parameters.
    """
    if not isinstance(saved, dict) or not all(isinstance(entry, dict) for entry in saved.values()):
        raise ValueError("the optimizer's state is damaged")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shapes = {}  # before the first step there is nothing to keep
    if step:
        for index, p in enumerate(parameters):
            shapes |= {(index, name): torch.Size() if name == "step" else p.shape for name in KEPT[type(optimizer)]}
    check_tensors({(index, name): t for index, entry in saved.items() for name, t in entry.items()}, shapes)
    optimizer.load_state_dict({"state": saved, "param_groups": optimizer.state_dict()["param_groups"]})


class WeightAverage:
    """The exponential moving average of what a model trains (Polyak & Juditsky 1992; for language models of small texts
    Merity et al. 2017, https://arxiv.org/abs/1708.02182).

    Weights that still move differ from step to step in what they know by heart; their mean keeps what they share.
    """

    def __init__(self, model: nn.Module, keep: float):
        """keep: the share of the average that a step leaves as it was; it reaches back some 1 / (1 - keep) steps."""
        self.keep = keep
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().clone() for name, p in self.trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps. It never reaches back more than some tenth of the run so far."""
        keep = min(self.keep, step / (step + 10))
        for name, average in self.averages.items():
            average.lerp_(self.trained[name], 1 - keep)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it, the model's weights are the average."""
        moving = {name: p.detach().clone() for name, p in self.trained.items()}
        self.put(self.averages)
        try:
            yield
        finally:
            self.put(moving)

    @torch.no_grad()
    def put(self, values: dict[str, Tensor]) -> None:
        for name, p in self.trained.items():
            p.copy_(values[name])

    def restore(self, saved: object) -> None:
        """Take over a saved average. Raises ValueError if its tensors do not fit the weights."""
        if not isinstance(saved, dict):
            raise ValueError("the average of the weights is missing")
        check_tensors(saved, {name: p.shape for name, p in self.trained.items()})
        for name, average in self.averages.items():
            average.copy_(saved[name])


def set_learning_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's rate to its peak times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def clip_gradients(model: nn.Module, limit: float) -> float:
    """Scale all gradients so that their common norm is at most `limit`; returns the norm before, finite or not."""
    return float(nn.utils.clip_grad_norm_(model.parameters(), limit))
