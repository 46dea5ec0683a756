"""NAME.story.jsonl: what its frames say of the model, and that a run with a story is the run without."""

import base64
import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from formats.checkpoint import TRAINING, load_model, read_checkpoint
from formats.embedding_map import aligned, principal_components
from formats.story import MAX_MAPS, MAX_SHOWN, STORY_TOKENS, read_story
from helpers import new_run, read_metrics, written
from sampling.inspect import attention_maps
from support.plain import MAX_LINE
from tiny_decoder import CausalSelfAttention
from training.report import log_story
from training.story import MAX_FRAMES, append_frame, fixed_tokens, shown_heads, story_frame

NETWORK = ["--max-seq", "64", "--embed-dim", "16", "--num-heads", "2", "--num-layers", "2", "--batch-size", "4"]
RUN = ["--data", "synthetic", "--device", "cpu", "--dtype", "float32", *NETWORK, "--out", "a.pth"]


def test_a_frame_holds_what_the_weights_of_its_step_do(output_of, tmp_path):
    """The last evaluation is at the last step, whose weights are saved."""
    output = output_of("main.py", *RUN, "--steps", 12, "--eval-every", 6)
    model = load_model(tmp_path / "a.pth").model
    frames, metrics = read_metrics(tmp_path / "a.story.jsonl"), read_metrics(tmp_path / "a.metrics.jsonl")
    assert [frame["step"] for frame in frames] == [0, 6, 12]
    for frame, line in zip(frames[1:], metrics, strict=True):
        assert (frame["train_loss"], frame["val_loss"]) == (line["train_loss"], line["val_loss"])
        first_line = next(line for line in frame["sample"].splitlines() if line.strip())
        assert first_line.strip() in output
    frame = frames[-1]
    ids, expected = frame["ids"], attention_maps(model, frame["ids"])
    assert len(ids) == STORY_TOKENS and frame["heads"] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    maps, below = np.zeros((4, STORY_TOKENS, STORY_TOKENS)), np.tril_indices(STORY_TOKENS)
    maps[:, below[0], below[1]] = np.frombuffer(base64.b64decode(frame["maps"]), np.uint8).reshape(4, -1) / 255
    assert np.abs(maps - expected.flatten(0, 1).numpy()).max() <= 0.5 / 255 + 1e-6
    losses = F.cross_entropy(model(torch.tensor([ids]))[0, :-1], torch.tensor(ids[1:]), reduction="none")
    assert frame["surprise"] == pytest.approx(losses.tolist(), abs=1e-3)
    assert len(frame["sample_surprise"]) == 120
    for name, vectors in (("tokens", model.token_embedding.weight[frame["tokens"]["ids"]]), ("positions", None)):
        vectors = model.position_embedding.weight if vectors is None else vectors
        points = torch.tensor(frame[name]["points"], dtype=torch.float64)
        axes, shares = principal_components(vectors.detach())
        assert torch.allclose(torch.cdist(points, points), torch.cdist(axes, axes), atol=1e-4)
        assert frame[name]["shares"] == pytest.approx(shares, abs=1e-4)


def test_a_map_lies_as_near_to_the_one_before_as_a_rotation_or_mirror_can_bring_it():
    points, earlier = torch.randn(2, 20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angles = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)
    turns = torch.stack([torch.stack([angles.cos(), -angles.sin()]), torch.stack([angles.sin(), angles.cos()])])
    mirror = torch.diag(torch.tensor([1.0, -1.0])).double()
    turned = [points @ turns[..., i] @ side for i in range(721) for side in (mirror, mirror @ mirror)]
    best = min(float((one - earlier).square().sum()) for one in turned)
    assert float((aligned(points, earlier) - earlier).square().sum()) <= best
    assert torch.allclose(aligned(turned[77], points), points)


def test_a_frame_takes_no_random_number_and_the_same_step_once(tmp_path):
    run, state = new_run(*RUN), torch.get_rng_state()
    for _ in range(2):  # a run that was stopped before its first step begins there again
        log_story(run, "a sample")
    assert torch.equal(torch.get_rng_state(), state)
    assert [frame["step"] for frame in read_metrics(tmp_path / "a.story.jsonl")] == [0]


def test_a_run_that_was_killed_before_it_saved_anything_leaves_no_numbered_story(tmp_path):
    log_story(new_run(*RUN), "a sample")
    new_run(*RUN)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    written(tmp_path / "a.story.jsonl", "not of a run")
    new_run(*RUN)
    assert (tmp_path / "a.1.story.jsonl").read_text() == "not of a run"


@pytest.mark.filterwarnings("ignore::tokenizer.UnknownCharacterWarning")
def test_a_large_network_shows_some_heads_and_a_line_stays_small():
    run = new_run(*RUN, "--num-layers", 30, "--num-heads", 4, "--max-seq", 600)
    assert [head for _, head in shown_heads(run)] == [0] * MAX_MAPS
    assert shown_heads(run)[0] == (0, 0) and shown_heads(run)[-1] == (29, 0)
    line = json.dumps(story_frame(run, "\U0001f600" * 5000, 1 / 7))
    assert len(line) <= MAX_LINE
    run = new_run(*RUN, "--num-layers", 12, "--num-heads", 8, "--max-seq", 600)
    assert shown_heads(run) == [(layer, head) for layer in range(12) for head in range(2)]


def test_a_persons_own_text_does_not_go_into_the_story(tmp_path):
    """The 48 tokens go with a page to others. They are a chain of pairs of characters, not a piece of a letter."""
    letter = "Dear Anna, do not tell him that I was at the bank on Monday with the other money. Yours, Jo. "
    written(tmp_path / "letters.txt", "".join(f"{number}. {letter}" for number in range(40)))
    run = new_run("--data", "letters.txt", *RUN[2:])
    ids = fixed_tokens(run)
    text = run.tokenizer.decode(ids)
    source = (tmp_path / "letters.txt").read_text()
    assert len(ids) == STORY_TOKENS and not any(text[i : i + 16] in source for i in range(len(text) - 15))
    assert all(text[i : i + 2] in source for i in range(len(text) - 1))
    public = new_run(*RUN)
    assert fixed_tokens(public) == public.val_tokens[:STORY_TOKENS].tolist()


def test_a_long_story_is_thinned_and_keeps_its_beginning(tmp_path):
    run = new_run(*RUN)
    frame, path = story_frame(run, "", None), tmp_path / "a.story.jsonl"
    for step in range(500):
        append_frame(path, {**frame, "step": step})
    steps = [line["step"] for line in read_metrics(path)]
    assert steps[0] == 0 and steps[-1] == 499 and steps == sorted(set(steps)) and len(steps) <= MAX_FRAMES
    shown = [frame["step"] for frame in read_story(path, run.model.config)]
    assert len(shown) == MAX_SHOWN and shown[0] == 0 and shown[-1] == 499 and shown == sorted(set(shown))


def test_a_network_that_cannot_be_looked_into_trains_without_a_story(output_of, tmp_path, monkeypatch):
    """As a student changes it: a layer that mixes tokens in another way has no queries and keys."""
    monkeypatch.delattr(CausalSelfAttention, "project")
    monkeypatch.setattr(CausalSelfAttention, "forward", lambda self, x, mask, cache=None: self.out_proj(x))
    output = output_of("main.py", *RUN, "--steps", 2)
    assert "NOTE" in output and "no story" in output and not (tmp_path / "a.story.jsonl").exists()
    assert read_checkpoint(tmp_path / "a.last.pth", TRAINING)[0]["training"]["step"] == 2
