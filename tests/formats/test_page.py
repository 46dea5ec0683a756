"""The HTML page: what is in the file, and, in Chromium, that it computes what PyTorch computes.

The oracles are the Python side: the model itself with the same rounded weights, sampler.py, tokenizer.py and
sampling/inspect.py. Chromium opens the file itself (file://) and is offline.
"""

import importlib.util
import json
import math
import random
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from formats import write_page
from formats.checkpoint import Checkpoint
from formats.write_page import read_metrics, save_page
from helpers import random_ids, sampled_ids, shaken, tiny_config
from sampler import Sampling, filter_stages
from sampling.inspect import attention_maps, logit_lens
from support.command import UserError
from tiny_decoder import TinyGPT
from tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer

HOSTILE = "".join(sorted(set("</script><img onerror=alert(1)>{{data}}&\"'\n`$\\ éß€😀\u2028")))
TEXT = "the quick brown fox jumps over the lazy dog. THE DOG! "
CONTRAST = Path(__file__).with_name("contrast.js")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def checkpoint(characters=TEXT, tokenizer=None, seed: int = 0, **changes) -> Checkpoint:
    """A model over the characters of a text: weights in float16, so large that its predictions differ clearly."""
    tokenizer = tokenizer or CharTokenizer.from_text(characters)
    fields = {"vocab_size": tokenizer.vocab_size, "max_seq": 32, "embed_dim": 24, "num_layers": 2, **changes}
    torch.manual_seed(seed)
    model = shaken(TinyGPT(tiny_config(**fields)), 0.15).eval()
    for p in model.parameters():
        p.data = p.data.half().float()
    return Checkpoint(model, tokenizer, {"corpus": "/home/me/secret/my.txt", "step": 3})


# --- The file --------------------------------------------------------------------------------------------------------


def data_of(loaded: Checkpoint) -> dict:
    """The block of data in a checkpoint's page."""
    save_page(Path("x.html"), loaded, None, "float16", force=True)
    text = Path("x.html").read_text("utf-8")
    data = re.search(r'<script type="application/json" id="model">(.*?)</script>', text, re.DOTALL)[1]
    scripts = len(write_page.ENGINE) + len(write_page.INTERFACE)
    assert "<" not in data and text.count("</script>") == 2 + scripts and "{{" not in text.replace(data, "")
    return json.loads(data)


@pytest.mark.parametrize(
    "origin, shown",
    [
        ({"corpus": "/home/me/secret/my.txt", "step": 3}, {"corpus": "my.txt", "step": 3}),
        ({"step": 10**400, "val_loss": math.nan, "recipe": {"lr": {"a": 1}}, "floor": None, "seed": [1]}, {}),
        ({"corpus": "</script><script>alert(1)<!--"}, {"corpus": "script><script>alert(1)<!--"}),
    ],
)
def test_the_file_tells_the_origin_without_folders_odd_values_and_markup(origin, shown):
    loaded = checkpoint(HOSTILE)
    loaded.origin = origin
    data = data_of(loaded)
    assert data["origin"] == shown and data["tokenizer"]["characters"] == HOSTILE


def test_a_file_that_is_no_page_needs_force(tmp_path):
    path = tmp_path / "x.html"
    path.write_text("my thesis")
    with pytest.raises(UserError, match="not from this command"):
        save_page(path, checkpoint(), None, "float16")
    save_page(path, checkpoint(), None, "float16", force=True)
    save_page(path, checkpoint(seed=1), None, "float16")


def test_damaged_metrics_cost_only_their_lines(tmp_path):
    good = {"step": 1, "train_seconds": 0.5, "train_loss": 3.0, "val_loss": 2.5}
    odd = [{**good, "step": 10**400}, {**good, "val_loss": None}, {**good, "val_loss": 1e999}, []]
    lines = [json.dumps(good), "{torn", '{"step": NaN}', *map(json.dumps, odd), json.dumps(good)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    assert read_metrics(tmp_path / "m.jsonl") == [good, good]
    assert read_metrics(tmp_path / "none.jsonl") == [] == read_metrics(None)


# --- In the browser ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """Chromium, headless; without it the tests are skipped, loudly."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None or importlib.util.find_spec("playwright") is None:
        warnings.warn("NOT TESTED: the page in a browser; needs Chromium and `pip install playwright`", stacklevel=1)
        pytest.skip("needs Chromium and playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """Write a checkpoint's page and open it, offline; at the end there was no request, error or message."""
    opened, noises = [], []

    def open_it(loaded, width=1280, color_scheme="light", change=None, awaited="#lens table", precision="float16"):
        path = tmp_path / f"page{len(opened)}.html"
        save_page(path, loaded, None, precision)
        if change:
            text = path.read_text("utf-8")
            path.write_text(change(text), "utf-8")
            assert path.read_text("utf-8") != text
        screen = {"viewport": {"width": width, "height": 900}, "color_scheme": color_scheme}
        context = browser.new_context(offline=True, java_script_enabled=awaited != "noscript", **screen)
        page = context.new_page()
        page.on("console", lambda message: noises.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: noises.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (noises.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(("file:", "blob:")) or noises.append(request.url))
        page.goto(path.as_uri())
        opened.append(context)
        page.wait_for_selector(awaited)  # by default: the text of the start is written and looked at
        return page

    open_it.noises = noises
    yield open_it
    assert noises == []
    for context in opened:
        context.close()


def marked(test):
    """Marks a test that needs the browser."""
    return pytest.mark.browser(pytest.mark.slow(test))


VARIANTS = [
    {},
    {"bias": False, "tie_embeddings": True, "gelu": "tanh"},
    {"embed_dim": 15, "num_heads": 3, "num_layers": 1, "max_seq": 7},  # nothing divisible by four
]


@marked
@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_logits_attention_and_lens_are_pytorchs(open_page, changes, precision):
    loaded = checkpoint(**changes)
    page = open_page(loaded, precision=precision)
    config = loaded.model.config
    for length in (1, 2, 5, config.max_seq):
        ids = random_ids(length, seed=length, vocab_size=config.vocab_size).tolist()
        logits = np.array(page.evaluate("ids => tinygpt.logits(ids)", ids))
        np.testing.assert_allclose(logits, loaded.model(torch.tensor([ids]))[0].detach(), rtol=0, atol=1e-3)
        maps = page.evaluate("async ids => (await tinygpt.attention(ids)).map(layer => Array.from(layer))", ids)
        expected = attention_maps(loaded.model, ids)
        np.testing.assert_allclose(np.array(maps).reshape(expected.shape), expected, atol=1e-4)
        lens = page.evaluate("async ids => (await tinygpt.lens(ids)).map(layer => Array.from(layer))", ids)
        expected = logit_lens(loaded.model, ids)
        np.testing.assert_allclose(np.array(lens).reshape(expected.shape), expected, atol=1e-3)


def python_text(loaded: Checkpoint, prompt: str, count: int, sampling: Sampling, seed=0, stride=None) -> str:
    """What generate.py writes."""
    ids = loaded.tokenizer.encode(prompt) or [loaded.tokenizer.start_id]
    tokens = sampled_ids(loaded.model, ids, count, sampling, loaded.tokenizer.special_ids, seed, stride)
    return prompt + loaded.tokenizer.decode(tokens)


UNIFORMS = "seed => { const m = new Mersenne(seed); return Array.from({length: 1000}, () => m.uniform()); }"
FILTERS = {"temperature": 0.9, "topK": 12, "topP": 0.95, "minP": 0.01, "repetitionPenalty": 1.1}


@marked
def test_texts_and_random_numbers_are_those_of_generate(open_page):
    """Two hundred tokens: far beyond the window."""
    loaded = checkpoint()
    page = open_page(loaded)

    def assert_same(prompt, filters, seed=0, **stride):
        options = {"prompt": prompt, "maxNewTokens": 200, "seed": seed, **filters, **stride}
        text = page.evaluate("options => tinygpt.generate(options)", options)
        assert text == python_text(loaded, prompt, 200, Sampling(*filters.values()), seed, **stride), options

    for stride in ({}, {"stride": 1}, {"stride": 5}, {"stride": 32}):
        assert_same("the quick", {"temperature": 0}, **stride)
    for seed in (0, 1, 1337, 2**31 + 5, 2**40 + 7):
        expected = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert page.evaluate(UNIFORMS, seed) == expected.tolist()
        for prompt in ("the dog", ""):
            assert_same(prompt, FILTERS, seed)


FILTER_STAGES = """([logits, seen, options]) => filterStages(Float32Array.from(logits), new Set(seen), options)
    .map(stage => [stage.name, Array.from(stage.logits)])"""
OPTIONS = {  # of the filters: values to choose from, in the order of Sampling's fields
    "temperature": [0, 0.05, 0.7, 1, 2],
    "topK": [0, 1, 3, 1000],
    "topP": [1e-6, 0.3, 0.9, 1.0],
    "minP": [0, 0.05, 1.0],
    "repetitionPenalty": [1, 0.8, 1.3],
}


@marked
def test_filters_are_those_of_the_sampler(open_page):
    page, chance = open_page(checkpoint()), random.Random(0)
    for number in range(200):
        size = chance.choice([1, 2, 5, 40, 300])
        torch.manual_seed(number)
        logits = torch.randn(1, size) * chance.choice([0.1, 1, 5])
        if chance.random() < 0.3:
            logits = logits.round()  # equal logits
        if size > 2 and chance.random() < 0.3:
            logits[0, chance.randrange(size)] = -torch.inf
        seen = torch.rand(1, size) < 0.3
        options = {name: chance.choice(values) for name, values in OPTIONS.items()}
        arguments = [logits[0].tolist(), seen[0].nonzero()[:, 0].tolist(), options]
        stages = page.evaluate(FILTER_STAGES, arguments)
        expected = filter_stages(logits, seen, Sampling(*options.values()))
        assert [name for name, _ in stages] == [name for name, _ in expected]
        for (name, mine), (_, theirs) in zip(stages, expected, strict=True):
            np.testing.assert_allclose(mine, theirs[0], rtol=1e-6, err_msg=f"case {number}, {name}, {options}")


def random_texts(count: int) -> list[str]:
    """Strings of every kind of character: words, white space, letters of many scripts, emoji, half surrogate pairs."""
    chance = random.Random(1)
    words = "the I'll don't we've 123 ½ naïve straße Привет 你好 日本 ไทย 👩 é \u0301 \ufeff ' 's <bos>".split()
    words += [" ", "  ", "\n", "\n\n ", "\t", "\r\n", "\u2028", "\u0085", "\u3000", "\xa0"]
    ranges = [(0, 0x7F), (0x80, 0x24F), (0x370, 0x3FF), (0x4E00, 0x9FA5), (0x1F300, 0x1F5FF), (0xD800, 0xDFFF)]
    texts = ["", " ", "x" * 700, " " * 300 + "a", "'s" * 200]
    while len(texts) < count:
        share = chance.choice([0, 0.5, 1])
        parts = (words if chance.random() < share else [chr(chance.randint(*chance.choice(ranges)))] for _ in range(24))
        texts.append("".join(map(chance.choice, parts)))
    return texts


@marked
@pytest.mark.filterwarnings("ignore::tokenizer.UnknownCharacterWarning")
def test_bpe_is_that_of_the_library_and_a_text_ends_at_gpt2s_end_of_text(open_page):
    """JavaScript reads two halves of a surrogate pair side by side as one character, and so must the library here. The
    end token may be sampled, adds nothing, and nothing comes after it: as generate.py without --ignore-eos."""
    codes = [[ord(c) for c in text] for text in random_texts(300)]  # because half pairs do not travel as strings
    pairs = [text.encode("utf-16-le", "surrogatepass") for text in random_texts(300)]
    texts = [text.decode("utf-16-le", "surrogatepass") for text in pairs]
    sources = [TEXT * 20, *(text.encode("utf-8", "replace").decode() for text in texts[:150])]
    learned = BPETokenizer.train(sources, 600)
    tokenizer = BPETokenizer([END_OF_TEXT, *learned.tokens[1:]], learned.merges)
    loaded, end = checkpoint(tokenizer=tokenizer, max_seq=16, num_layers=1), tokenizer.eos_id
    loaded.model.head.weight.data[end] *= 4
    page = open_page(loaded)
    encoded = page.evaluate("all => all.map(codes => tinygpt.encode(String.fromCodePoint(...codes)))", codes)
    assert encoded == [tokenizer.encode(text) for text in texts]
    every = [*encoded, *([i] for i in range(tokenizer.vocab_size))]
    decoded = page.evaluate("all => all.map(ids => tinygpt.decode(ids))", every)
    assert decoded == [tokenizer.decode(ids) for ids in every]
    lengths = set()
    for seed in range(8):
        made = sampled_ids(loaded.model, tokenizer.encode("é"), 200, Sampling(temperature=0.8), seed=seed)
        made = made[: made.index(end)] if end in made else made
        options = {"prompt": "é", "maxNewTokens": 200, "seed": seed}
        assert page.evaluate("options => tinygpt.generate(options)", options) == "é" + tokenizer.decode(made)
        lengths.add(len(made))
    assert len(lengths) > 1


PANELS = "#text span; #why table .bar; #grid canvas; #looks .bar; #lens .bar; #next .bar"
PANELS += "; #token-map text; #position-map polyline; #recipe td"


@marked
def test_a_hostile_vocabulary_is_text_and_no_connection_is_allowed(open_page):
    """The prompt, the text, the tables and the maps are full of markup; `open_page` checks that nothing came of it."""
    loaded = checkpoint(HOSTILE + "\ufffd")
    corpus = "<img src=x onerror=alert(1)>"
    loaded.origin = {"corpus": corpus, "bigram_entropy": 2.0, "floor": 1.0, "recipe": {"lr": 0.1}}
    page = open_page(loaded)
    for text in (HOSTILE, "\ufffd", "", "😀</script>"):
        assert page.evaluate("text => tinygpt.encode(text)", text) == loaded.tokenizer.encode(text)
        assert page.evaluate("text => tinygpt.decode(tinygpt.encode(text))", text) == text
    assert page.evaluate("[tinygpt.encode('xQ'), tinygpt.decode([0, 1])]") == [[0, 0], "\ufffd"]
    page.fill("#prompt", "</script><img onerror=alert(1)>")
    page.click("#go")
    page.wait_for_selector("#go:enabled")
    page.wait_for_selector("#lens table")
    scripts = page.evaluate("document.querySelectorAll('img, script:not([class]):not([type])').length")
    assert scripts == len(write_page.INTERFACE)
    assert [panel for panel in PANELS.split("; ") if not page.locator(panel).count()] == []
    assert page.inner_text("#text").startswith("</script><img onerror=alert(1)>")
    assert open_page.noises == []
    assert page.evaluate("fetch('https://example.org').then(() => 'connected', () => 'refused')") == "refused"
    assert "Content Security Policy" in open_page.noises.pop(0)
    open_page.noises.clear()


DAMAGES = {
    "a weight": lambda text: re.sub(r'(id="weights">.{4000}).{40}', r"\1" + 10 * "AAA8", text),
    "weights cut": lambda text: re.sub(r'(id="weights">.{4000}).*?<', r"\1<", text),
    "a logit": lambda text: re.sub(r'("logits": \[\[)[^,]*', r"\g<1>123.0", text),
    "no check": lambda text: text.replace('"check":', '"other":'),
    "the network": lambda text: text.replace('"gelu": "exact"', '"gelu": "tanh"'),
}


@marked
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_page_that_was_changed_says_so_and_shows_nothing_of_its_model(open_page, damage):
    loaded = checkpoint()
    page = open_page(loaded, change=DAMAGES[damage], awaited="#alert:not([hidden])")
    assert page.inner_text("#alert") and page.inner_text("#text") == "" and page.is_disabled("#go")
    assert page.evaluate("tinygpt.trusted") is False
    for question in ("tinygpt.ready", "tinygpt.logits([3])", "tinygpt.generate({prompt: 'the'})", "tinygpt.lens([3])"):
        assert page.evaluate(f"{question}.then(() => 'answered', () => 'refused')") == "refused"


@marked
def test_heads_off_change_loss_and_predictions(open_page, tmp_path):
    """Without a head, the page gives what PyTorch gives when the columns of out_proj that read it are zero."""
    loaded = checkpoint()
    page = open_page(loaded)
    ids = page.evaluate("tinygpt.encode(document.getElementById('text').textContent)")[-32:]
    before = page.inner_text("#loss-line")
    page.locator("#switches input").nth(1).uncheck()  # layer 1, head 2
    page.wait_for_selector("#grid button.off")
    after = page.inner_text("#loss-line")
    assert after != before
    losses = []
    for first in (24, 12):  # the columns of out_proj that are zero from here on: none, or the second head's
        loaded.model.blocks[0].attention.out_proj.weight.data[:, first:] = 0
        losses.append(F.cross_entropy(loaded.model(torch.tensor([ids]))[0, :-1], torch.tensor(ids[1:])).item())
    assert [float(number) for number in re.findall(r"\d+\.\d{3}", after)][:2] == pytest.approx(losses, abs=2e-3)


@marked
def test_the_choice_is_explained_and_the_keyboard_reaches_it(open_page):
    page = open_page(checkpoint())
    page.fill("#temperature", "0.5")
    page.fill("#topK", "3")
    page.click("#go")
    page.wait_for_selector("#go:enabled")
    heads = page.locator("#why thead th").all_inner_texts()
    assert heads == ["Token", "the model says", "after temperature", "after top-k"]
    assert page.locator("#why .counts td").all_inner_texts()[-1] == "3"
    page.fill("#token", "3")
    first = page.inner_text("#why-line")
    page.focus("#token")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#why-line") != first and page.get_attribute("#token", "aria-valuetext").startswith("5:")
    page.locator("#text span").nth(7).click()
    assert page.input_value("#token") == "7"


@marked
def test_stop_ends_the_text_and_bad_input_is_said_in_words(open_page):
    page = open_page(checkpoint(max_seq=256, embed_dim=96, num_layers=3))
    page.evaluate("Object.assign(document.getElementById('maxNewTokens'), {max: 1e6, value: 1e6})")
    page.click("#go")
    page.wait_for_selector("#text span >> nth=20")
    page.click("#stop")
    page.wait_for_selector("#go:enabled")
    assert 20 < page.locator("#text span").count() < 1e5
    refused = page.evaluate("tinygpt.generate({temperature: -1}).catch(error => error.message)")
    assert refused.startswith("temperature must be a number from 0")
    assert "window of 256" in page.evaluate("tinygpt.logits(Array(300).fill(2)).catch(error => error.message)")
    assert "is not a token id" in page.evaluate("tinygpt.logits([99]).catch(error => error.message)")


NAME = "e.labels?.length || e.ariaLabel || e.getAttribute('aria-labelledby') || e.textContent.trim()"
CONTROLS = "[...document.querySelectorAll('button, input, textarea, [role=img], [tabindex]')]"
CARDS = "[...document.querySelectorAll('section, .card')]"
TOPS = f"{CARDS}.map(e => Math.round(e.getBoundingClientRect().top + scrollY))"


@marked
def test_without_javascript_the_page_says_so(open_page):
    assert "JavaScript is switched" in open_page(checkpoint(), awaited="noscript").inner_text("noscript")


@marked
@pytest.mark.parametrize("width, colours", [(360, "dark"), (768, "light"), (1280, "light"), (2560, "dark")])
def test_nothing_overflows_or_jumps_and_all_has_names_and_contrast(open_page, width, colours):
    """Nothing overflows sideways, and nothing moves downwards while text streams or another token is chosen."""
    page = open_page(checkpoint(), width=width, color_scheme=colours)
    before = page.evaluate(TOPS)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.evaluate("document.getElementById('go').click()")
    while page.locator("#go:disabled").count():
        assert page.evaluate(TOPS) == before
    page.fill("#token", "5")
    assert page.evaluate(TOPS) == before
    assert page.evaluate(f"{CONTROLS}.filter(e => !({NAME})).map(e => e.outerHTML.slice(0, 80))") == []
    page.fill("#position", "20")
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert page.evaluate(CONTRAST.read_text()) == []
