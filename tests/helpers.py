"""What several test files need: small or changed networks, random ids, small texts, runs, comparisons of states."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import tiny_decoder
from corpora.texts import Split, TextSpan
from formats.checkpoint import TRAINING, read_checkpoint
from main import build_run
from recipe import parse_flags
from sampler import Sampling, SlidingWindow, generate, row_generators
from tiny_decoder import MLP, CausalSelfAttention, DecoderBlock, TinyGPT, TinyGPTConfig, causal_mask
from training.distributed import ALONE
from training.run import Run
from training.start import begin, find_start
from training.state import RunPaths

ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(os.name != "posix", reason="what POSIX systems and their shells have")
SMALL_NETWORK = ["--max-seq", "16", "--embed-dim", "16", "--num-heads", "2", "--num-layers", "1", "--batch-size", "4"]


def tiny_config(**changes) -> TinyGPTConfig:
    """One layer, width 8: enough for every property of the network."""
    fields = {"vocab_size": 11, "max_seq": 6, "embed_dim": 8, "num_heads": 2, "num_layers": 1, **changes}
    return TinyGPTConfig(**fields)


def random_ids(*shape: int, seed: int = 0, vocab_size: int = 11) -> torch.Tensor:
    """Token ids of this shape, the same for the same seed."""
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def shaken(model: TinyGPT, scale: float = 0.3, seed: int = 1) -> TinyGPT:
    """The model, its weights moved far from their initial values, so that every term of the network matters."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p += scale * torch.randn(p.shape, generator=generator)
    return model


def shaken_model(seed: int = 0, scale: float = 0.3, **changes) -> TinyGPT:
    """A shaken model of `tiny_config(**changes)`, for evaluation."""
    torch.manual_seed(seed)
    return shaken(TinyGPT(tiny_config(**changes)), scale).eval()


def rebuilt(kind: type[nn.Module], change) -> tuple:
    """For `monkeypatch.setattr`: change(module) is called for every new module of this kind."""
    build = kind.__init__

    def init(self, *arguments, **options):
        build(self, *arguments, **options)
        change(self)

    return kind, "__init__", init


def post_norm(self, x, mask, cache=None):
    x = self.attention_norm(x + self.attention(x, mask, cache))
    return self.mlp_norm(x + self.mlp(x))


def resize(mlp: MLP, hidden: int) -> None:
    mlp.up, mlp.down = nn.Linear(8, hidden), nn.Linear(hidden, 8)


PROJECT = CausalSelfAttention.project
# As a student changes the network: a model of width 8 with two layers and 32 positions gives other logits.
NETWORK_CHANGES = {  # name -> the arguments of `monkeypatch.setattr`, before the model is made
    "ReLU": (MLP, "forward", lambda self, x: self.down(self.up(x).relu())),
    "scale": (CausalSelfAttention, "project", lambda *x: PROJECT(*x) * torch.tensor([2, 1, 1]).view(3, 1, 1, 1, 1)),
    "formula": (CausalSelfAttention, "weigh", lambda self, q, k, v, mask, dropout=0: (q @ k.mT + mask).softmax(-1) @ v),
    "window of 16": (tiny_decoder, "causal_mask", lambda n: causal_mask(n) + causal_mask(n + 15)[15:, :n].T),
    "no mask": (tiny_decoder, "causal_mask", lambda size: torch.zeros(size, size)),
    "post-norm": (DecoderBlock, "forward", post_norm),
    "positions": rebuilt(TinyGPT, lambda gpt: gpt.position_embedding.register_forward_hook(lambda *call: 0 * call[2])),
    "narrow MLP": rebuilt(MLP, lambda mlp: resize(mlp, 16)),
    "wide MLP": rebuilt(MLP, lambda mlp: resize(mlp, 64)),
    "a layer less": rebuilt(TinyGPT, lambda gpt: gpt.blocks.pop(-1)),
}


def written(path: Path, content: str | bytes) -> Path:
    """The path, after a file with this content was written there; text goes in as it is, in UTF-8."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def text_of(part: Split | TextSpan) -> str:
    """All of its text, which comes in blocks."""
    return "".join(part.blocks())


def read_metrics(path: Path) -> list[dict]:
    """The lines of a `NAME.metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def new_run(*flags: object) -> Run:
    """The run that `main.py FLAGS` would begin or resume, before its first step."""
    settings, given = parse_flags(list(map(str, flags)))
    files = RunPaths(Path(settings.out))
    start = find_start(settings, given, files, ALONE)
    run = build_run(start, files, ALONE)
    begin(run, start, given)
    return run


def survivors(logits: torch.Tensor) -> set[int]:
    """The tokens of logits (1, V) that no filter has rejected."""
    return {token for token, value in enumerate(logits[0].tolist()) if value > -torch.inf}


def sampled_ids(
    model: TinyGPT, ids: list[int], count: int, sampling: Sampling | None = None, suppressed=(), seed=0, stride=None
) -> list[int]:
    """What the sampler writes after these ids; greedy if no sampling is given."""
    window = SlidingWindow(model, [ids], stride)
    steps = generate(window, count, row_generators(seed, 1), sampling or Sampling(temperature=0.0), suppressed)
    return [token for (token,) in steps]


def assert_one_error_line(errors: str, *words: str) -> None:
    """A command's stderr has one `error:` line that holds these words, and no traceback."""
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in errors, errors
    for word in words:
        assert word in lines[0], lines[0]


def state_of(path: Path) -> dict[str, object]:
    """Every tensor, number and setting of a training state; without clock times and what a resume may change."""
    header, tensors = read_checkpoint(path, TRAINING)
    left_out = {"train_seconds", "seconds_sum", "stop_at", "resume", "launch", "out"}
    plain = {"config": header["config"], "tokenizer": header["tokenizer"], **header["settings"], **header["training"]}
    return {**tensors, **{name: value for name, value in plain.items() if name not in left_out}}


def assert_same_state(a: Path, b: Path) -> None:
    """Two training states are equal to the last bit."""
    first, second = state_of(a), state_of(b)
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, f"{name}: {value} and {second[name]}"
