"""What a page tells of training: the story of the run, and a network that learns in the page; what goes with a page.

The oracles are PyTorch: sampling/inspect.py, autograd, torch.optim.AdamW.
"""

import base64
import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_page
import torch
from test_page import checkpoint, data_of, marked, until
from torch.nn import functional as F

from formats.checkpoint import TRAINING, Checkpoint, load_model, model_weights, read_checkpoint
from formats.embedding_map import embedding_maps
from formats.excerpt import MAX_CHARACTERS, excerpt_of_corpus
from formats.story import checked_frame, read_story
from formats.write_page import encode
from helpers import new_run, random_ids, written
from sampling.inspect import attention_maps
from tiny_decoder import TinyGPT, TinyGPTConfig
from tokenizer import CharTokenizer
from training.story import sample_ids, story_frame, surprises

browser, open_page = test_page.browser, test_page.open_page
NETWORK = ["--max-seq", "32", "--embed-dim", "16", "--num-heads", "2", "--num-layers", "2", "--batch-size", "4"]
RUN = ["--data", "synthetic", "--device", "cpu", "--dtype", "float32", *NETWORK, "--out", "a.pth"]
LETTERS = "Dear Anna, do not tell him that I was at the bank on Monday. Yours, Jo.\n" * 30


def two_frames(*flags) -> tuple[Checkpoint, list[dict]]:
    """A model, and frames of its training: at step 0, and as if at step 10."""
    run = new_run(*RUN, *flags)
    first = story_frame(run, "a sample", None)
    second = {**copy.deepcopy(first), "step": 10, "train_loss": 3.0, "val_loss": 3.1, "sample": "another"}
    second["sample_surprise"] = [1.0] * 7
    return Checkpoint(run.model.eval(), run.tokenizer, {"corpus": "synthetic"}), [first, second]


def write_story(frames: list) -> Path:
    """A story beside b.pth."""
    return written(Path("b.story.jsonl"), "".join(json.dumps(frame) + "\n" for frame in frames)).with_name("b.pth")


ODD = {  # a field of a frame -> what it cannot be
    "step": [-1, 1.5, "1", 10**400, None],
    "val_loss": [math.nan, "3", [3], "", False],
    "ids": [[], [99999], [0.5], list(range(49)), "abc", {}],
    "surprise": [[], [1.0], [math.inf] * 31, ["1"] * 31, None],
    "heads": [[[0, 9]], [[0]], [0], [[-1, 0]] * 4, [[True, 0]] * 4],
    "maps": ["", "AAAA", "</script>", 3, "\ud800"],
    "sample": [3, "x" * 601, "\ud800", None],
    "sample_surprise": [[1e999], "x", [None]],
    "tokens": [{}, [], {"ids": [1], "points": [[1, 2, 3]], "shares": [0, 0]}, {"ids": [1], "points": [], "shares": []}],
    "positions": [{"points": [[0, 0]] * 65, "shares": [1, 0]}, {"points": [[0, "<b>"]], "shares": [1, 0]}, "x"],
}


def test_a_damaged_or_hostile_frame_costs_only_itself():
    loaded, (first, second) = two_frames()
    odd = [{**second, "step": 5, name: value} for name, values in ODD.items() for value in values]
    odd += [{name: value for name, value in second.items() if name != missing} for missing in second]
    path = write_story([first, *odd, [], 3, second]).with_suffix(".story.jsonl")
    torn = b'{torn\n\xff\n{"step": NaN}\n' + b"[" * 100_000 + b"\n" + b" " * 70_000 + b"1"
    path.write_bytes(path.read_bytes() + torn)
    story = read_story(path, loaded.model.config)
    assert [frame["step"] for frame in story] == [0, 10]
    assert story[1] == json.loads(json.dumps(second)) and read_story(None, loaded.model.config) == []
    assert read_story(path, replace(loaded.model.config, num_layers=1)) == [], "of another model"
    run = new_run("--data", written(Path("a.txt"), "a" * 5000), *RUN[2:])  # its embeddings, of one letter, had one axis
    path = write_story([story_frame(run, "aaaa", None)]).with_suffix(".story.jsonl")
    assert len(read_story(path, run.model.config)) == 1


@pytest.mark.parametrize("shape", [{}, {"tie_embeddings": True, "bias": False, "embed_dim": 24, "num_heads": 3}])
def test_int8_keeps_the_loss(shape):
    """A row's largest weight is exact; so is a row of zeros, and a vector."""
    loaded = checkpoint(**shape)
    weights = model_weights(loaded.model)
    weights["token_embedding.weight"][3] = 0
    encoded, layout, read = encode(weights, "int8")
    assert len(encoded) < 2 * sum(count for _, count, _ in layout), "about a byte for a weight"
    ids = random_ids(4, 32, vocab_size=loaded.model.config.vocab_size)
    losses = []
    for state in (weights, read):
        loaded.model.load_state_dict(state, strict=False)
        losses.append(F.cross_entropy(loaded.model(ids).flatten(0, 1), ids.flatten()).item())
    assert losses[1] == pytest.approx(losses[0], abs=0.02) and losses[1] != losses[0]
    for name, weight in weights.items():
        steps = weight.abs().amax(-1, keepdim=True) / 127 if weight.dim() == 2 else torch.zeros(1)
        assert ((read[name] - weight).abs() <= 0.51 * steps).all(), name


def test_no_letter_leaves_with_a_model_by_accident(output_of, tmp_path):
    """Not in the excerpt, and not in the story; with --excerpt the text that was asked for, without its folder."""
    written(tmp_path / "letters.txt", LETTERS)
    output_of("main.py", "--data", "letters.txt", *RUN[2:], "--steps", 2)
    output = output_of("convert.py", "a.pth", "a.html")
    assert re.search(r"model's by up to [\d.]+ .*rounded to int8.*\n.*holds no text; see --excerpt", output)
    page = (tmp_path / "a.html").read_text("utf-8")
    assert '"excerpt": null' in page and '"story": [{' in page and "Anna" not in page
    flags = ["--excerpt", tmp_path / "letters.txt", "--precision", "float32", "--force"]
    output = output_of("convert.py", "a.pth", "a.html", *flags)
    page = (tmp_path / "a.html").read_text("utf-8")
    assert "Dear Anna" in page and str(tmp_path) not in page and "characters of letters.txt" in output
    assert "rounded" not in output
    assert "--excerpt" in output_of("convert.py", "a.pth", "b.pth", "--excerpt", "letters.txt", code=2)
    assert "has no text" in output_of("convert.py", "a.pth", "a.html", "--excerpt", written(Path("empty"), ""), code=2)


def test_the_excerpt_is_of_the_validation_split_of_the_very_corpus():
    corpus = new_run(*RUN).corpus
    excerpt = excerpt_of_corpus({"corpus": "synthetic", "corpus_sha256": corpus.sha256})
    assert excerpt["text"] == "".join(corpus.val.blocks())[:MAX_CHARACTERS] and excerpt["unseen"]
    others = [{"corpus": "synthetic", "corpus_sha256": "x"}, {"corpus": "./synthetic", "corpus_sha256": corpus.sha256}]
    others += [{"corpus": "tinyshakespeare"}, {}]  # the first is not here, and not to be downloaded
    assert not any(map(excerpt_of_corpus, others))


@marked
def test_the_replayed_maps_are_those_of_the_steps_weights(open_page, output_of):
    """The run is stopped at each evaluation, where its weights are saved, and resumed."""
    output_of("main.py", *RUN, "--steps", 12, "--eval-every", 6, "--stop-at", 6)
    _, weights = read_checkpoint(Path("a.last.pth"), TRAINING)
    output_of("main.py", "--resume", "--out", "a.pth")
    loaded = load_model(Path("a.pth"))
    page = open_page(loaded, beside=Path("a.pth"))
    story = page.evaluate("tinygpt.story.map(({step, ids, maps}) => [step, ids, maps.map(map => Array.from(map))])")
    assert [step for step, _, _ in story] == [0, 6, 12]
    for step, ids, maps in story[1:]:
        model = loaded.model
        if step == 6:
            model = copy.deepcopy(model)
            model.load_state_dict({name: weights[name] for name in model.state_dict()})
        expected = attention_maps(model, ids).flatten(0, 1).flatten(1)
        np.testing.assert_allclose(np.array(maps), expected, atol=0.5 / 255 + 1e-5)
    texts, tops = [], []
    page.set_viewport_size({"width": 360, "height": 740})
    page.evaluate("showChapter(5)")
    for place in range(3):
        page.evaluate("place => learned.show(place)", place)
        assert 0 < page.locator("#story-step").bounding_box()["y"] < 300, "it stays in sight"
        tops.append(page.evaluate(test_page.TOPS))
        texts.append([page.inner_text(f"#story-{part}") for part in ("line", "sample")])
        texts[-1].append(page.evaluate("[...document.querySelectorAll('#story-maps canvas')].map(c => c.toDataURL())"))
        texts[-1] += [page.inner_html(f"#{name}") for name in ("token-map", "story-text")]
    assert all(a != b for parts in zip(*texts, strict=True) for a, b in ((parts[0], parts[2]), (parts[1], parts[2])))
    assert texts[2][0].startswith("Step 12:") and tops[0] == tops[1] == tops[2]
    page.click("#story-play")  # from the beginning, because this is the end
    until(page, "() => document.getElementById('story-play').textContent === 'Play'")
    assert page.input_value("#story-step") == "2"


def on_an_arc(frame: dict, count=32) -> dict:
    points = [[math.cos(3 * i / count), math.sin(3 * i / count)] for i in range(count)]
    return {**frame, "positions": {"points": points, "shares": [0.6, 0.3]}}


VOWELS = """spread => {
    const ids = tinygpt.encode('abcdefghijklmnopqrstuvwxyz'), isVowel = (id) => 'aeiou'.includes(tinygpt.decode([id]));
    const tokens = (far) => ({ ids, points: ids.map((id, i) => [isVowel(id) ? far * i : i, 0]) });
    return tokenText(tokens(0.1), spread && tokens(spread), book.tokenizer).includes('nobody told');
}"""


@marked
def test_the_position_map_never_claims_an_order_that_the_initial_weights_had(open_page):
    """An untrained `tiny` drew a perfect arc of sinusoids under "the model has learned that places have an order"."""
    loaded, (first, second) = two_frames()
    learned, had = "the model has learned", "the initial weights had this order"
    page = open_page(loaded, beside=write_story([first, on_an_arc(second)]))
    assert learned in page.inner_text("#position-note")
    page.fill("#story-step", "0")
    assert "no order is to be seen" in page.inner_text("#position-note")
    page = open_page(loaded, beside=write_story([on_an_arc(first), on_an_arc(second)]))
    assert had in page.inner_text("#position-note") and learned not in page.inner_text("#position-note")
    page = open_page(loaded)
    assert learned not in page.inner_text("#position-note") and page.is_hidden("#story-step")
    assert "vowels" in page.inner_text("#token-note")
    assert [page.evaluate(VOWELS, first) for first in (1, None, 0.1)] == [True, False, False]
    assert "vowel" not in open_page(checkpoint("пример текста ")).inner_text("#token-note")


@marked
def test_a_hostile_story_injects_nothing(open_page):
    """`open_page` checks that nothing came of it."""
    loaded, (first, second) = two_frames()
    attack = "</script><img src=x onerror=alert(1)>{{data}}<!--"
    page = open_page(loaded, beside=write_story([first, {**second, "sample": attack}]))
    known = "".join(c if c in loaded.tokenizer.characters else "\ufffd" for c in attack)
    assert page.text_content("#story-sample") == known
    assert page.evaluate("document.querySelectorAll('img').length") == 0


@marked
@pytest.mark.parametrize("layers, heads", [(4, 3), (6, 4)])
def test_every_chapter_fits_a_phone_and_a_projector_with_each_of_its_tabs(open_page, layers, heads):
    """With all heads ranked and the filters open, too; a text gets the height that is left."""
    loaded, story = two_frames("--num-layers", layers, "--num-heads", heads, "--embed-dim", 24)
    loaded.origin["recipe"] = {f"field_{n}": n for n in range(16)}
    excerpt = {"text": loaded.tokenizer.decode(story[0]["ids"]) * 3, "source": "a text", "unseen": True}
    page = open_page(loaded, beside=write_story(story), excerpt=excerpt, viewport={"width": 360, "height": 740})
    bottom = "e => e.getBoundingClientRect().bottom"
    assert page.locator("#guess-result").evaluate(bottom) < 741, "the introduction took half of the screen"
    page.evaluate("byId('rank').click() ?? (document.querySelector('.steer details').open = true)")
    until(page, "() => byId('rank-state').textContent.startsWith('Most needed')")
    assert page.evaluate(test_page.TOO_TALL) == []
    assert layers > 4 or page.evaluate("['grid', 'lens'].every(id => byId(id).scrollWidth <= byId(id).clientWidth)")
    assert page.locator("#guess .text").bounding_box()["height"] > 120
    page.locator("#go").evaluate("e => { e.scrollIntoView({block: 'end'}); e.click(); }")
    assert page.locator("#text").evaluate(bottom) < 741
    assert page.is_visible("#grid small") or layers > 4, "what heads do was not said"
    page.locator("#grid button").first.click()
    assert page.is_visible("#map") and page.is_hidden("#grid")  # its tab is open
    page.set_viewport_size({"width": 740, "height": 360})
    until(page, f"() => document.querySelector('.top').offsetHeight < 60 && {test_page.OVERFLOW} <= 0")  # one row
    page.evaluate("byId('guess-text').append(...tinted(Array(999).fill(3), []))")  # longer than its box
    for width, height in ((1024, 768), (1366, 768), (1920, 1080), (3840, 2160)):
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.querySelector('main').clientWidth > 0.9 * innerWidth"), "half of it was empty"
        page.click("#projector")
        assert page.evaluate("parseFloat(getComputedStyle(document.body).fontSize) > innerWidth / 100")
        for place in range(8):
            page.evaluate("showChapter", place)
            assert page.evaluate(test_page.TOO_TALL) == [] and page.evaluate(test_page.OVERFLOW) <= 0
            assert page.locator("#guess-text").evaluate(bottom) <= page.locator("#guess .text").evaluate(bottom)
        page.click("#projector")


SHOWN = "[book.tokenizer.decode(book.text), book.index, book.position, book.ids[book.position]]"


@marked
def test_a_token_of_any_text_is_chosen_and_back_brings_the_other_text_back(open_page):
    loaded, story = two_frames()
    text = loaded.tokenizer.decode(story[0]["ids"]) * 3
    page = open_page(loaded, beside=write_story(story), excerpt={"text": text, "source": "a text", "unseen": True})
    page.locator("#switches button").first.click()
    page.click("#compare")
    page.wait_for_selector(".beside:has(#text-whole :nth-child(150)) #text-broken :nth-child(150)")
    assert len(set(page.evaluate("['text-whole', 'text-broken'].map(id => byId(id).offsetTop)"))) == 1, "stacked"
    before, pair = page.evaluate(SHOWN), page.inner_html("#break .beside")
    for box in ("text-broken", "text-whole", "guess-text", "story-sample", "story-text"):
        page.locator(f"#{box} span").nth(6).click()
        until(page, "() => book.index === 6 && book.here")
        shown, *_, token = page.evaluate(SHOWN)
        assert shown == page.text_content(f"#{box}") != before[0] and page.is_visible("#taken")
        assert shown.startswith(page.input_value("#prompt")) and page.inner_html("#break .beside") == pair
        until(page, "id => byId('follow-steps').innerText.includes(` is row ${id} in`)", token)
        page.evaluate("history.back()")
        until(page, f"before => `${{{SHOWN}}}` === `${{before}}`", before)
        assert page.is_hidden("#taken")
    page.evaluate("history.forward()")
    until(page, "() => book.index === 6")
    page.click("#heads .tabs >> text=Layers")
    page.locator("#lens .really").last.click()
    until(page, "() => book.index === 7")
    page.locator("#guess .text").press("Enter")
    until(page, "() => book.index === byId('guess-text').childElementCount - 1 && location.hash.includes('prompt=')")


GRADIENTS = """([config, weights, ids, targets]) => {
    const made = zeroWeights(config);
    for (const [name, values] of Object.entries(weights)) made.weights[name].set(values);
    const trainer = new Trainer(config, made), loss = trainer.loss(Uint16Array.from(ids), Uint16Array.from(targets));
    trainer.backward();
    const copied = (all) => Object.fromEntries(Object.entries(all).map(([name, values]) => [name, Array.from(values)]));
    const gradients = copied(trainer.gradients);
    for (let i = 0; i < 3; i++) {
      trainer.loss(Uint16Array.from(ids), Uint16Array.from(targets));
      trainer.backward();
      trainer.step(0.01);
    }
    return { loss, gradients, weights: copied(made.weights) };
}"""


@marked
@pytest.mark.parametrize("heads, layers, width", [(4, 1, 48), (3, 2, 15)])
def test_the_trainers_gradients_and_steps_are_those_of_pytorch(open_page, heads, layers, width):
    config = TinyGPTConfig(13, 7, width, heads, layers)
    torch.manual_seed(0)
    model = test_page.shaken(TinyGPT(config), 0.2).train()
    inputs, targets = random_ids(5, 7, seed=1), random_ids(5, 7, seed=2)
    plain = {name: p.detach().flatten().tolist() for name, p in model.named_parameters()}
    fields = {**data_of(checkpoint())["config"], **vars(config)}
    page = open_page(checkpoint())
    found = page.evaluate(GRADIENTS, [fields, plain, inputs.flatten().tolist(), targets.flatten().tolist()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        if not step:
            assert found["loss"] == pytest.approx(loss.item(), abs=1e-5)
            for name, p in model.named_parameters():
                difference = (torch.tensor(found["gradients"][name]) - p.grad.flatten()).abs().max()
                assert difference <= 1e-4 * p.grad.abs().max().clamp(max=1), name
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    for name, p in model.named_parameters():  # the keys' bias, a third of in_proj_bias, has no gradient but noise
        assert (torch.tensor(found["weights"][name]) - p.detach().flatten()).abs().median() <= 1e-5, name


LEAVE = "dispatchEvent(new Event('beforeunload', {cancelable: true}))"  # false: the browser asks
SOURCE = "the quick brown fox jumps over the lazy dog, and the dog sleeps on.\n" * 40
RUNS = """async options => {
    const [one, two] = [await tinygpt.train(options), await tinygpt.train(options)];
    let asked = 0;
    const stopped = await trainNetwork(options, () => {}, () => ++asked === 10), { config, weights } = stopped.model;
    window.stages = [initialWeights(config, options.seed).weights, weights];
    return [one.losses, two.losses, one.model.story];
}"""


def trained_model(page, weights: str) -> TinyGPT:
    """A network that was trained in the page, as PyTorch's."""
    model = TinyGPT(TinyGPTConfig(len(set(SOURCE)) + 2, 32, 48, 4, 1)).eval()
    pairs = page.evaluate(f"Object.entries({weights}).map(([name, w]) => [name, Array.from(w)])")
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert {name for name, _ in pairs} == shapes.keys()
    model.load_state_dict({name: torch.tensor(w).view(shapes[name]) for name, w in pairs}, strict=False)
    return model


@marked
def test_a_run_in_the_page_tells_what_main_would_tell_of_its_weights(open_page):
    """At step 0, and at step 10, where the same run is stopped. The story takes no random number of the training."""
    page, tokenizer = open_page(checkpoint()), CharTokenizer.from_text(SOURCE)
    losses, again, story = page.evaluate(RUNS, {"text": SOURCE, "steps": 40, "seed": 3})
    assert losses == again and len(losses) == 40 and losses[-1] < 2.5 < 3 < losses[0]
    assert losses[-1] == pytest.approx(0.848, abs=0.01), "as it was without a story"
    assert [frame["step"] for frame in story] == [0, 1, 3, 6, 10, 16, 25, 39, 40]
    for frame, earlier, weights in ((story[0], story[0], "stages[0]"), (story[4], story[3], "stages[1]")):
        model = trained_model(page, weights)
        assert frame == checked_frame(frame, model.config)
        maps = np.frombuffer(base64.b64decode(frame["maps"]), np.uint8).reshape(4, -1) / 255
        rows, columns = np.tril_indices(32)
        expected = attention_maps(model, frame["ids"])[0][:, rows, columns]
        np.testing.assert_allclose(maps, expected, atol=0.5 / 255 + 1e-5)
        np.testing.assert_allclose(frame["surprise"], surprises(model, frame["ids"]), atol=1e-3)
        written = sample_ids(tokenizer, frame["sample"])[:32]  # then its window moves
        np.testing.assert_allclose(frame["sample_surprise"][:31], surprises(model, written), atol=1e-3)
        for name, expected in embedding_maps(model, tokenizer, 32, earlier).items():
            for field in expected:
                np.testing.assert_allclose(frame[name][field], expected[field], atol=1e-3)


@marked
def test_a_network_is_trained_in_the_page_and_goes_through_the_book(open_page):
    loaded, story = two_frames("--max-seq", 64)  # a longer window than the new network's
    page = open_page(loaded, beside=write_story(story), viewport={"width": 740, "height": 360})
    told = [page.inner_html(f"#{name}") for name in ("learned", "numbers")]
    for word, odd in {"1000 letters": "text: 'short'", "steps": "steps: 0, text: ''", "string": "text: 3"}.items():
        assert word in page.evaluate(f"tinygpt.train({{{odd}}}).catch(String)")
    page.fill("#train-paste", SOURCE)
    assert page.evaluate(f"[{LEAVE}, byId('train-go').click(), {LEAVE}]") == [True, None, False], "lost unasked"
    until(page, "() => training.reports.length")
    assert page.evaluate("training.reports[0].step") == 1
    until(page, "() => training.reports.some(({heldOut, bigram}) => heldOut < bigram)")  # it beats the table of pairs
    page.locator("#train-sample span").nth(6).click()  # nothing: it is still learning
    page.click("#train-go")  # stop
    page.wait_for_selector("#train-use:enabled")
    assert 0 < page.evaluate("training.reports.at(-1).step") < 1000 and page.locator("#train-loss polyline").count()
    assert page.evaluate(LEAVE) is False
    own = page.evaluate("tinygpt.config.vocab_size")
    page.fill("#prompt", "ROMEO:")
    page.fill("#temperature", "0.5")
    page.evaluate("['rank', 'train-use'].forEach(id => document.getElementById(id).click())")
    until(page, f"book.trained && {test_page.WRITTEN}")
    assert page.evaluate("tinygpt.config.vocab_size") == len(set(SOURCE)) + 2 != own
    until(page, "() => document.querySelector('.top').offsetHeight < 60")  # a note was a second row
    assert page.inner_text("#train-status").startswith("The book now shows your network")  # it seemed to do nothing
    model, ids = trained_model(page, "training.trained.weights"), page.evaluate("tinygpt.encode('the lazy dog')")
    logits = np.array(page.evaluate("ids => tinygpt.logits(ids)", ids))
    np.testing.assert_allclose(logits, model(torch.tensor([ids]))[0].detach(), rtol=0, atol=1e-3)
    assert page.locator("#grid canvas").count() == 4 and " + b" in page.inner_text("#follow-steps")
    read = [page.input_value("#prompt"), page.evaluate("book.tokenizer.decode(guessing.ids)")]
    assert all(read) and all(text in SOURCE for text in read), "the page's text and prompt were read as unknown"
    last = page.evaluate("training.reports.at(-1)")  # chapters 6 and 8 tell of it
    step, loss, pairs = last["step"], f"{last['heldOut']:.3f}", f"{last['bigram']:.3f}"
    assert re.match(rf"Step {step}: loss of these 32 tokens .*{loss}$", page.inner_text("#story-line"))
    assert f"held-out text: {pairs}" in page.inner_text("#loss + p")
    page.fill("#story-step", "0")
    assert page.evaluate("tinygpt.story[0].maps.length") == 4 == page.locator("#story-maps canvas").count()
    assert page.inner_text("#story-line").startswith("Step 0:") and "adamw" in page.inner_text("#recipe")
    until(page, "() => !location.hash.includes('prompt')")  # nobody else's page has this network
    page.fill("#prompt", "the lazy dog")  # as if from a person's text: it stood in the address after Back
    page.click("#own-back")
    until(page, "() => document.getElementById('own-back').hidden && document.activeElement.id === 'strip'")
    assert page.evaluate("[tinygpt.config.vocab_size, writing.options().temperature]") == [own, 0.5]
    until(page, "() => location.hash.includes('prompt=%0A&')")  # the start token of an empty prompt
    assert [page.inner_html(f"#{name}") for name in ("learned", "numbers")] == told and page.is_hidden("#alert")
    page.locator("#train-sample span:not(.s)").nth(6).click()  # it was plain text
    until(page, f"() => book.trained && book.index === 6 && {test_page.WRITTEN}")
    assert page.evaluate(SHOWN)[0] == page.text_content("#train-sample") == page.input_value("#prompt")
    page.fill("#train-paste", "short")  # then the network trained before could not be taken through the book again
    page.click("#train-go")
    page.wait_for_selector("#train:has(#train-use:enabled):has-text('1000 letters')")
