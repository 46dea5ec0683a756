"""The HTML page: what is in the file, and, in Chromium and Firefox, that it computes what PyTorch computes. The oracles
are the Python side: the model with the same rounded weights, sampler.py, tokenizer.py, sampling/inspect.py."""

import copy
import importlib.resources
import importlib.util
import json
import math
import random
import re
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from formats import write_page
from formats.checkpoint import Checkpoint, model_weights
from formats.write_page import read_metrics, save_page
from helpers import random_ids, sampled_ids, shaken, tiny_config, written
from sampler import TEMPERATURE, Sampling, SlidingWindow, filter_stages
from sampling.inspect import attention_maps, logit_lens, residual_stream
from support.command import UserError
from tiny_decoder import TinyGPT
from tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer

HOSTILE = "".join(sorted(set("</script><img onerror=alert(1)>{{data}}&\"'\n`$\\ éß€😀\u2028")))
TEXT = "the quick brown fox jumps over the lazy dog. THE DOG! "
DONE = "#status:has-text('Done')"
WRITTEN = "document.getElementById('status').textContent.startsWith('Done')"


def checkpoint(characters=TEXT, tokenizer=None, seed: int = 0, **changes) -> Checkpoint:
    """A model over the characters of a text: weights in float16, so large that its predictions differ clearly."""
    tokenizer = tokenizer or CharTokenizer.from_text(characters)
    fields = {"vocab_size": tokenizer.vocab_size, "max_seq": 32, "embed_dim": 24, "num_layers": 2, **changes}
    torch.manual_seed(seed)
    model = shaken(TinyGPT(tiny_config(**fields)), 0.15).eval()
    for p in model.parameters():
        p.data = p.data.half().float()
    return Checkpoint(model, tokenizer, {"corpus": "/home/me/secret/my.txt", "step": 3})


def data_of(loaded: Checkpoint) -> dict:
    """The block of data in a checkpoint's page."""
    save_page(Path("x.html"), loaded, None, "float16", None, force=True)
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
    path = written(tmp_path / "x.html", "my thesis")
    with pytest.raises(UserError, match="not from this command"):
        save_page(path, checkpoint(), None, "float16", None)
    save_page(path, checkpoint(), None, "float16", None, force=True)
    save_page(path, checkpoint(seed=1), None, "float16", None)


def test_damaged_metrics_cost_only_their_lines(tmp_path):
    good = {"step": 1, "train_seconds": 0.5, "train_loss": 3.0, "val_loss": 2.5}
    odd = [{**good, "step": 10**400}, {**good, "val_loss": None}, {**good, "val_loss": 1e999}, []]
    lines = [json.dumps(good), "{torn", '{"step": NaN}', *map(json.dumps, odd), json.dumps(good)]
    assert read_metrics(written(tmp_path / "m.jsonl", "\n".join(lines))) == [good, good]
    assert read_metrics(tmp_path / "none.jsonl") == [] == read_metrics(None)


# --- In the browser ----------------------------------------------------------------------------------------------


PROGRAMS = {"chromium": "chromium chromium-browser google-chrome chrome", "firefox": "firefox-esr firefox"}
OPTIONS = {"chromium": {"args": ["--no-sandbox"]}, "firefox": {"channel": "moz-firefox"}}  # by WebDriver BiDi
PREFERENCES = {"dark": ("layout.css.prefers-color-scheme.content-override", 0)}  # of Firefox, from its start
PREFERENCES["active"] = ("browser.display.document_color_use", 2)


def program_of(name: str) -> str | None:
    return next(filter(None, map(shutil.which, PROGRAMS[name].split())), None)


def launched(browser_type, **options):
    """An installed browser, headless."""
    name = browser_type.name
    return browser_type.launch(executable_path=program_of(name), **OPTIONS[name], **options)


@pytest.fixture(scope="module", params=PROGRAMS)
def browser(request):
    """Chromium, then Firefox; without one of them its tests are skipped, loudly."""
    if program_of(request.param) is None or importlib.util.find_spec("axe_playwright_python") is None:
        needed = f"needs {request.param} and `pip install playwright axe-playwright-python`"
        warnings.warn(f"NOT TESTED: the page in a browser; {needed}", stacklevel=1)
        pytest.skip(needed)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        one = launched(getattr(playwright, request.param))
        yield one
        one.close()


class Opener:
    """Writes pages and opens them, offline, and notes every request, error and message."""

    def __init__(self, browser, folder: Path):
        self.browser, self.folder, self.contexts, self.noises = browser, folder, [], []

    def __call__(
        self, loaded, awaited=DONE, precision="float16", change=None, excerpt=None, fragment="", beside=None, **screen
    ):
        path = self.folder / f"page{len(self.contexts)}.html"
        save_page(path, loaded, beside, precision, excerpt, force=True)
        if change:
            text = path.read_text("utf-8")
            path.write_text(change(text), "utf-8")
            assert path.read_text("utf-8") != text
        screen = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light", **screen}
        browser, asked = self.browser, PREFERENCES.keys() & {screen["color_scheme"], screen.get("forced_colors")}
        if asked and browser.browser_type.name == "firefox":
            browser = launched(browser.browser_type, firefox_user_prefs=dict(PREFERENCES[one] for one in asked))
        context = browser.new_context(offline=True, **screen)
        page = context.new_page()
        page.on("console", lambda message: self.noises.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.noises.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.noises.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda one: one.url.startswith(("file:", "blob:")) or self.noises.append(one.url))
        page.goto(path.as_uri() + fragment)
        self.contexts.append(context)
        page.wait_for_selector(awaited)  # by default: the text of the start is written and looked at
        return page


@pytest.fixture
def open_page(browser, tmp_path):
    """An Opener; at the end there was no request, error or message."""
    opener = Opener(browser, tmp_path)
    yield opener
    assert opener.noises == []
    for context in opener.contexts:
        (context if context.browser == browser else context.browser).close()


EXCERPT = {"source": "a text", "text": TEXT * 10, "unseen": True}


@pytest.fixture(scope="module")
def opened_book(browser, tmp_path_factory):
    """One page for all tests that only ask or click: opening one takes seconds."""
    opener, loaded = Opener(browser, tmp_path_factory.mktemp("book")), checkpoint()
    yield opener(loaded, excerpt=EXCERPT), loaded, opener.noises
    assert opener.noises == []


@pytest.fixture
def book(opened_book):
    """The shared page with a text just written, and its model."""
    page, loaded, noises = opened_book
    page.evaluate("document.getElementById('controls').reset()")
    page.fill("#prompt", "the quick")
    write(page)
    yield page, loaded
    assert noises == []


def until(page, condition: str, *arguments) -> None:
    """Wait until an expression is true. (Playwright's own way to wait for one is refused by the page's policy.)"""
    deadline = time.monotonic() + 30
    while not page.evaluate(condition, *arguments):
        assert time.monotonic() < deadline, f"waited in vain for {condition}"
        time.sleep(0.02)


def write(page) -> None:
    """Press the button, and wait for the text."""
    page.evaluate("document.getElementById('status').textContent = ''")
    page.click("#go")
    page.wait_for_selector(DONE)


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
@pytest.mark.parametrize("precision", ["int8", "float16", "float32"])
def test_logits_attention_and_lens_are_pytorchs(open_page, changes, precision):
    """Of a model with the weights as they were rounded."""
    loaded = checkpoint(**changes)
    page = open_page(loaded, precision=precision, excerpt=EXCERPT)
    loaded.model.load_state_dict(write_page.encode(model_weights(loaded.model), precision)[2], strict=False)
    config = loaded.model.config
    assert (" + b" in page.inner_text("#follow-steps")) == config.bias
    page.fill("#guess-input", "e")
    page.click("#guess-form button.main")  # it was disabled if a round was longer than the window
    until(page, "() => guessing.theirs.length === 1")
    ids, at, nats = page.evaluate("[guessing.ids, guessing.at - 1, guessing.theirs[0]]")
    window = torch.tensor([ids[max(0, at - config.max_seq) : at]])
    assert nats == pytest.approx(-loaded.model(window)[0, -1].log_softmax(-1)[ids[at]].item(), abs=1e-3)
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
        for layer, head in ((0, 1), (config.num_layers - 1, 0)):
            request = {"ids": ids, "position": length // 2, "layer": layer, "head": head}
            for name, values in followed(loaded.model, **request).items():
                followed_by = "async ([r, name]) => Array.from((await tinygpt.follow(r))[name])"
                numbers = page.evaluate(followed_by, [request, name])
                np.testing.assert_allclose(numbers, values, rtol=0, atol=1e-3, err_msg=name)


@torch.inference_mode()
def followed(model, ids, position, layer, head) -> dict:
    """What window.tinygpt.follow answers, by the model's own modules."""
    block, stream = model.blocks[layer], residual_stream(model, ids)
    x, mask = stream[layer][None, : position + 1], model.causal_mask[: position + 1, : position + 1]
    q, k, v = (part[0, head] for part in block.attention.project(block.attention_norm(x)))
    scores = k @ q[-1] / math.sqrt(q.size(-1))
    attended = (x + block.attention(block.attention_norm(x), mask))[0, -1]
    numbers = {"x": x[0, -1], "q": q[-1], "scores": scores, "weights": scores.softmax(0), "mix": scores.softmax(0) @ v}
    numbers |= {"attended": attended, "hidden": block.mlp.gelu(block.mlp.up(block.mlp_norm(attended)))}
    return numbers | {"after": stream[layer + 1][position], "logits": model(torch.tensor([ids]))[0, position]}


def python_text(loaded: Checkpoint, prompt: str, count: int, sampling: Sampling, seed=0, stride=None) -> str:
    """What generate.py writes."""
    ids = loaded.tokenizer.encode(prompt) or [loaded.tokenizer.start_id]
    tokens = sampled_ids(loaded.model, ids, count, sampling, loaded.tokenizer.special_ids, seed, stride)
    return prompt + loaded.tokenizer.decode(tokens)


UNIFORMS = "seed => { const m = new Mersenne(seed); return Array.from({length: 1000}, () => m.uniform()); }"
FILTERS = {"temperature": 0.9, "topK": 12, "topP": 0.95, "minP": 0.01, "repetitionPenalty": 1.1}


@marked
def test_texts_and_random_numbers_are_those_of_generate(open_page):
    """Two hundred tokens: far beyond the window. The vocabulary is not sorted: fine-tuning puts new characters last."""
    loaded = checkpoint(tokenizer=CharTokenizer("".join(dict.fromkeys(TEXT)), "t"))
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
VALUES = [0, 0.05, 0.7, 1, 2], [0, 1, 3, 1000], [1e-6, 0.3, 0.9, 1.0], [0, 0.05, 1.0], [1, 0.8, 1.3]  # as in FILTERS


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
        options = {name: chance.choice(values) for name, values in zip(FILTERS, VALUES, strict=True)}
        stages = page.evaluate(FILTER_STAGES, [logits[0].tolist(), seen[0].nonzero()[:, 0].tolist(), options])
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
    learned = BPETokenizer.train([TEXT * 20, *(text.encode("utf-8", "replace").decode() for text in texts[:150])], 600)
    tokenizer = BPETokenizer([END_OF_TEXT, *learned.tokens[1:]], learned.merges)
    loaded, end = checkpoint(tokenizer=tokenizer, max_seq=16, num_layers=1), tokenizer.eos_id
    loaded.model.head.weight.data[end] *= 4
    page = open_page(loaded)
    assert page.text_content("#text span") == "(start)" and page.evaluate(CLIPPED) == [], "it could not be seen"
    encoded = page.evaluate("all => all.map(codes => tinygpt.encode(String.fromCodePoint(...codes)))", codes)
    assert encoded == [tokenizer.encode(text) for text in texts]
    every = [*encoded, *([i] for i in range(tokenizer.vocab_size))]
    decoded = page.evaluate("all => all.map(ids => tinygpt.decode(ids))", every)
    assert decoded == [tokenizer.decode(ids) for ids in every]
    lengths = set()
    for seed in range(8):
        made = sampled_ids(loaded.model, tokenizer.encode("é"), 200, Sampling(TEMPERATURE), seed=seed)
        made = made[: made.index(end)] if end in made else made
        options = {"prompt": "é", "maxNewTokens": 200, "seed": seed}
        assert page.evaluate("options => tinygpt.generate(options)", options) == "é" + tokenizer.decode(made)
        lengths.add(len(made))
    assert len(lengths) > 1


@marked
def test_a_line_end_between_documents_ends_one_and_can_be_seen(open_page):
    """Of names, one a line, it was read as unknown: the model lost against blind guessing, and samples were odd."""
    loaded, text = checkpoint(tokenizer=CharTokenizer("abc")), "cab\nab\n" * 20
    page = open_page(loaded, excerpt={**EXCERPT, "text": text}, fragment="#write&prompt=cab%0Aab&seed=1")
    assert set(page.evaluate("guessing.ids")) == {1, 2, 3, 4} and "b\n" in page.text_content("#guess-text")
    assert re.fullmatch("cab\nab.*\n", page.text_content("#text"))
    until(page, "() => location.hash.includes('prompt=cab%0Aab&')")
    made = sampled_ids(loaded.model, [2], 200, Sampling(TEMPERATURE), (0,), seed=5)
    text = page.evaluate("tinygpt.generate({prompt: 'a', seed: 5})")
    assert text == "a" + loaded.tokenizer.decode(made[: made.index(1)])


PANELS = "#strip .chip; #text span; #why table .bar; #follow-steps canvas; #grid canvas; #looks .bar; #lens .bar"
PANELS += "; #parts .bar; #switches canvas; #next .bar; #token-map text; #position-map polyline; #recipe td"
PANELS += "; #glossary dt; #guess-score .bar"


@marked
def test_a_hostile_vocabulary_is_text_and_no_connection_is_allowed(open_page):
    """The prompt, the text, the tables and the maps are full of markup; `open_page` checks that nothing came of it."""
    loaded = checkpoint(HOSTILE + "\ufffd")
    corpus = "<img src=x onerror=alert(1)>"
    loaded.origin = {"corpus": corpus, "bigram_entropy": 2.0, "floor": 1.0, "recipe": {"lr": 0.1, "init": "train"}}
    page = open_page(loaded, excerpt={"source": corpus, "text": HOSTILE * 20, "unseen": False})
    assert corpus in page.text_content("h1 + details")
    assert "initial weights|train|" in "|".join(page.locator("#recipe :is(th, td)").all_text_contents()) + "|"
    for text in (HOSTILE, "\ufffd", "", "😀</script>"):
        assert page.evaluate("text => tinygpt.encode(text)", text) == loaded.tokenizer.encode(text)
        assert page.evaluate("text => tinygpt.decode(tinygpt.encode(text))", text) == text
    assert page.evaluate("[tinygpt.encode('xQ'), tinygpt.decode([0, 1])]") == [[0, 0], "\ufffd"]
    page.fill("#prompt", "</script><img onerror=alert(1)>\u2028")
    write(page)
    scripts = page.evaluate("document.querySelectorAll('img, script:not([class]):not([type])').length")
    assert scripts == len(write_page.INTERFACE)
    assert [panel for panel in PANELS.split("; ") if not page.locator(panel).count()] == []
    assert page.text_content("#text").startswith("</script><img onerror=alert(1)>U+2028")
    hidden = page.evaluate("escapeInvisible('\\u061c\\u{e0041}\\u3164\\u200d')")
    assert hidden == "U+061CU+E0041U+3164\u200d", "what joins letters and emoji stays"
    assert page.evaluate("[0, 1].map(id => showToken(book.tokenizer, id))") == ["(unknown)", "(special)"]
    assert open_page.noises == []
    with page.expect_event("pageerror" if open_page.browser.browser_type.name == "firefox" else "console"):
        assert page.evaluate("fetch('https://example.org').then(() => 'connected', () => 'refused')") == "refused"
    assert "default-src 'none'" in open_page.noises.pop(0)
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
    page = open_page(checkpoint(), change=DAMAGES[damage], awaited="#alert:not([hidden])")
    assert page.inner_text("#alert") and page.inner_text("#text") == ""
    assert page.evaluate("[tinygpt.trusted, document.querySelectorAll('.chapter:not([inert])').length]") == [False, 0]
    for question in ("tinygpt.ready", "tinygpt.logits([3])", "tinygpt.generate({prompt: 'the'})", "tinygpt.lens([3])"):
        assert page.evaluate(f"{question}.then(() => 'answered', () => 'refused')") == "refused"


def without_heads(loaded: Checkpoint, *heads: tuple[int, int]) -> TinyGPT:
    """The model, but out_proj reads zeros instead of these heads (layer, head)."""
    model = copy.deepcopy(loaded.model)
    width = model.config.embed_dim // model.config.num_heads
    for layer, head in heads:
        model.blocks[layer].attention.out_proj.weight.data[:, head * width : (head + 1) * width] = 0
    return model


def loss_of(model: TinyGPT, ids: list[int]) -> float:
    return F.cross_entropy(model(torch.tensor([ids]))[0, :-1], torch.tensor(ids[1:])).item()


@marked
def test_every_chapter_gives_one_token_one_probability(book):
    """At 14 places of a text of some windows. Once the last 64 tokens were read as positions 1 to 64: 67%, not 75%."""
    page, loaded = book
    text = page.evaluate("book.text")
    assert len(text) > 6 * loaded.model.config.max_seq
    window, expected = SlidingWindow(loaded.model, [text[:9]]), {}
    for index in range(8, len(text) - 1):
        expected[index] = window.next_logits()[0].softmax(-1)[text[index + 1]].item()
        window.append([text[index + 1]])
    for index in range(9, len(text) - 1, 14)[:14]:
        page.locator("#text span").nth(index).click()
        page.evaluate("book.moveTo(book.index)")  # returns when every chapter shows the chosen token
        probability = pytest.approx(expected[index], abs=2e-5)
        assert math.exp(-page.evaluate("i => book.surprises[i]", index + 1)) == probability
        assert page.evaluate("softmax(book.here.logits)[book.text[book.index + 1]]") == probability
        assert page.evaluate("book.here.lens.at(-1).share") == probability
        assert page.evaluate("book.ids[book.position] === book.text[book.index] && book.start + book.position") == index
        places = "#why tr:has(.really) .number >> nth=0", "#lens tbody tr:last-child td:last-child"
        shown = {page.inner_text(place) for place in places}
        assert len(shown) == 1 and f"probability {shown.pop()}" in page.inner_text("#cursor")
    page.evaluate("book.moveTo(Infinity)")
    assert page.locator("main section:not(#guess) .really").count() == 0, "at the end nothing came next"


@marked
def test_heads_that_are_off_cost_what_pytorch_says(book):
    page, loaded = book
    page.evaluate("book.moveTo(19)")
    page.click("#compare")
    assert page.inner_text("#compare-state").startswith("Switch a head off") and page.text_content("#text-whole") == ""
    ids = page.evaluate("book.ids")
    assert page.locator("#next .bar1").count() == 0, "brown, though no head was off"
    page.locator("#switches button").nth(1).click()  # layer 1, head 2
    page.wait_for_selector("#loss-line:has-text('without')")
    expected = [loss_of(loaded.model, ids), loss_of(without_heads(loaded, (0, 1)), ids)]
    said = [float(number) for number in re.findall(r"\d+\.\d{3}", page.inner_text("#loss-line"))][:2]
    assert said == pytest.approx(expected, abs=2e-3)
    top = without_heads(loaded, (0, 1))(torch.tensor([ids]))[0, 19].topk(3).indices.tolist()  # not all were shown
    names = page.evaluate("ids => ids.map(id => showToken(book.tokenizer, id))", top)
    assert set(names) <= set(page.inner_text("#next").split())
    answer = page.evaluate("async ids => (await tinygpt.look({ids, off: [1, 2]})).lossWithout", ids)
    assert answer == pytest.approx(loss_of(without_heads(loaded, (0, 1), (1, 0)), ids), abs=1e-3)
    ranks = page.evaluate("ids => tinygpt.rankHeads({ids})", ids)
    losses = [loss_of(without_heads(loaded, (rank["layer"], rank["head"])), ids) for rank in ranks]
    assert [rank["loss"] for rank in ranks] == pytest.approx(losses, abs=1e-3)
    assert [rank["change"] for rank in ranks] == sorted((rank["change"] for rank in ranks), reverse=True)
    page.evaluate("document.getElementById('rank').click(); book.moveTo(18)")  # the ranking is of the window
    page.wait_for_selector("#rank-state:has-text('Most needed')")
    page.dblclick("#compare")  # the second press ends what the first one shows: the two were mixed
    page.wait_for_selector(".beside:has(#text-whole :nth-child(150)) #text-broken :nth-child(150)")
    assert page.text_content("#text-whole") == page.text_content("#text")[: len(page.text_content("#text-whole"))]
    assert page.text_content("#text-broken") != page.text_content("#text-whole")
    page.fill("#prompt", "the dog")
    write(page)
    assert page.text_content("#text-whole") == ""
    page.evaluate("['go', 'all-on'].forEach(id => document.getElementById(id).click())")  # no window is read yet
    page.wait_for_selector(DONE)
    assert page.inner_text("#loss-line").endswith("all heads.") and page.is_hidden("#alert")


@marked
def test_the_parts_add_up_to_the_logit_and_habits_are_found(book):
    page, loaded = book
    ids = page.evaluate("book.ids")
    for target in (3, 7):
        question = "([ids, id]) => book.engine.ask('token', {ids, t: 9, id})"
        parts = page.evaluate(f"async q => (await ({question})(q)).parts.map(part => part.value)", [ids, target])
        logits = loaded.model(torch.tensor([ids]))[0, 9]
        assert sum(parts) == pytest.approx((logits[target] - logits.mean()).item(), abs=1e-3)
    name = """([weights, ids]) => headHabit(Float32Array.from(weights), {ids, blank: ids.map(id => id === 0),
        word: ids.map((_, t) => ids.slice(0, t + 1).filter(id => id === 0).length)})"""
    ids, T = [1, 2, 3, 0, 4, 1, 2, 3, 0, 5, 6, 2] * 3, 36
    before, spaces, even, five = np.zeros((4, T, T))
    for t in range(T):
        before[t, max(0, t - 1)] += 0.8
        before[t, 0] += 0.2
        spaces[t, max([3] + [j for j in range(t + 1) if not ids[j]])] = 1
        even[t, : t + 1] = 1 / (t + 1)
        five[t, max(0, t - 4) : t + 1] = 1 / min(5, t + 1)  # was named "this word so far"
    habits = [page.evaluate(name, [each.flatten().tolist(), ids]) for each in (before, spaces, even, five)]
    assert habits[0] == {"name": "the token before", "share": pytest.approx(0.8)}
    assert [habit["name"] for habit in habits[1:]] == ["spaces and line ends", "", "the last few"]


@marked
def test_a_bet_costs_its_surprise(book):
    """Twenty bets of 80%: the model's nats are PyTorch's, yours those of the bet."""
    page, loaded = book
    page.select_option("#guess-sure", "0.8")
    ids, at = page.evaluate("[guessing.ids, guessing.at]")
    came = loaded.tokenizer.decode(ids[at : at + 20])
    for number in range(20):
        page.fill("#guess-input", "e")
        page.click("#guess-form button.main")
        until(page, "n => guessing.you.length === n", number + 1)
    yours, theirs = page.evaluate("[guessing.you, guessing.theirs]")
    logits = loaded.model(torch.tensor([ids]))[0, at - 1 : at + 19]
    expected = F.cross_entropy(logits, torch.tensor(ids[at : at + 20]), reduction="none")
    assert theirs == pytest.approx(expected.tolist(), abs=1e-3)
    assert sum(nats == pytest.approx(-math.log(0.8)) for nats in yours) == came.count("e")
    letters, config = TEXT * 10, loaded.model.config
    miss, letter = next((n, c) for n, c in enumerate(came) if c != "e")
    total = len(letters) + 0.5 * config.vocab_size
    share = 0.2 * (letters.count(letter) + 0.5) / (total - letters.count("e") - 0.5)
    assert yours[miss] == pytest.approx(-math.log(share), abs=1e-6)
    for button, answer in (("form .main", "All 20 bets"), ("new", "Type a letter"), ("form .main", "First say what")):
        page.click(f"#guess-{button}")  # each of them once said nothing, or kept the old result
        assert page.inner_text("#guess-result").startswith(answer)


@marked
def test_sliders_move_the_bars_at_once_and_the_keyboard_reaches_all(book):
    page, _ = book
    page.evaluate("Object.assign(new Book(), {config: book.config, engine: book.engine}).moveTo(1)")  # no text yet
    page.fill("#temperature", "0.5")
    page.fill("#topK", "3")
    assert page.inner_text("#status").endswith("press Write."), "it said Done, of a text with other settings"
    heads = page.locator("#why thead th").all_inner_texts()
    assert heads == ["Go on with", "the model says", "after temperature", "after top-k"]
    assert page.locator("#why tr:last-child td").all_inner_texts()[-1] == "3"
    page.evaluate("book.moveTo(5)")
    page.locator("#strip").press("ArrowRight")
    until(page, "() => book.position === 6 && byId('strip').getAttribute('aria-valuenow') === '7'")
    page.locator("#strip .chip").nth(9).click()
    until(page, "() => book.position === 9")
    page.evaluate("showChapter(0)")
    page.keyboard.press("ArrowRight")  # a click on the strip leaves the arrow keys to the chapters
    page.evaluate("byId('guess-input').focus({preventScroll: true})")
    page.keyboard.press("ArrowRight")  # so does an empty field, as after a bet: the keys seemed dead
    assert page.evaluate("book.current") == page.evaluate("tinygpt.chapters[2]") == "follow"
    page.evaluate("document.getElementById('projector').click()")
    visible = page.locator("section.chapter:visible")
    counts = [(page.set_viewport_size({"width": w, "height": 900}), visible.count())[1] for w in (900, 1280)]
    assert counts == [8, 1], "who made the window narrow, or letters large, was left with one chapter"
    page.keyboard.press("PageDown")
    assert page.evaluate("book.current") == "heads"
    page.evaluate("document.getElementById('projector').click()")
    page.locator("#follow-steps li").nth(9).click()
    page.click("#follow-next")  # from the end of a layer to the next one
    until(page, "() => book.layer === 1 && following.step === 2")
    page.evaluate("following.show(10)")
    page.click("#follow-next")
    until(page, "() => book.layer === 0 && following.step === 0")
    page.evaluate("book.moveTo(60)")  # in a window that has moved; with a rival it once moved again
    rival, before = page.locator("#why .rival").nth(1), page.evaluate("[book.start, ...book.here.logits]")
    token, text = rival.inner_text(), page.evaluate("book.text")
    rival.click()
    page.wait_for_selector(DONE)
    assert page.evaluate("[book.start, ...book.here.logits]") == before and before[0] > 0
    assert page.evaluate("showToken(book.tokenizer, book.text[61])") == token and page.evaluate("book.index") == 60
    assert page.evaluate("document.activeElement.id") == "why"
    page.locator("#why-line button").press("Enter")
    until(page, "() => book.index === 59 && document.activeElement.textContent === 'One token back'")
    page.evaluate("history.back()")
    until(page, "text => String(book.text) === String(text) && book.index === 60", text)


@marked
def test_stop_bad_input_and_long_prompts_are_said_in_words(open_page):
    loaded, fragment = checkpoint(max_seq=256, embed_dim=96, num_layers=3), "#follow&seed=x&prompt=the%20dog&token=4.5"
    page = open_page(loaded, fragment=fragment, awaited="#seed[aria-invalid=true]")
    assert page.inner_text("#seed-note").startswith("a whole number")
    assert page.evaluate("document.activeElement.id") == "seed"
    until(page, "() => book.index === 3")  # the prompt is read all the same
    assert page.locator("#strip .chip").count() >= 7 and not page.is_visible("#alert")
    page.click("#compare")
    assert page.text_content("#text-whole") == "", "it was written with seed 0"
    assert "seed" in page.inner_text("#compare-state"), "a projector showed the chapter without a word"
    page.fill("#seed", "7")
    page.evaluate("Object.assign(document.getElementById('maxNewTokens'), {max: 1e6, value: 1e6})")
    page.click("#go")
    page.wait_for_selector("#text span >> nth=20")  # nothing waits for the end of the text
    assert page.locator("#follow-steps canvas").count() and "generate.py" in page.inner_text("#seed-note")
    page.click("#go")
    page.wait_for_selector(DONE)
    until(page, "() => location.hash.includes(`maxNewTokens=${book.text.length - book.given}&`)")  # not a million
    assert 20 < page.locator("#text span").count() < 1e5 and page.evaluate("document.activeElement.id") == "go"
    page.evaluate("byId('maxNewTokens').value = 0")
    page.fill("#prompt", "the quick brown fox " * 60)
    write(page)
    assert "model read the last 256" in page.inner_text("#status") and "nats a character" in page.inner_text("#status")
    assert page.evaluate("document.getElementById('text').scrollTop") > 0
    page.evaluate("book.moveTo(book.first + 100)")
    strip, chip = map(page.locator("#strip").evaluate, (CENTRE, CENTRE.replace("e.", "e.querySelector('.chosen').")))
    assert abs(strip - chip) < 15
    refusals = {
        "temperature must be a number from 0": "generate({temperature: -1}); generate({temperature: NaN})",
        "there is no option": "generate({temperatur: 1}); generate({toString: 1}); look({ids: [3], of: 0})",
        "seed must be a whole number": "generate({seed: null}); generate({seed: '3'}); train({text: '', seed: -1})",
        "off must be a list": "generate({off: [6]}); look({ids: [3], off: 'x'})",
        "ids must be a list of 1 to 256": "logits(Array(300).fill(2)); logits([99]); lens('the'); attention({})",
        "position must be a whole number from 0 to 0": "follow({ids: [3], position: 1, layer: 0, head: 0})",
        "head must be a whole number from 0 to 1": "follow({ids: [3], position: 0, layer: 0, head: 2})",
        "needs an object of": "train(5); rankHeads(); generate(null)",
        "the second argument must be a function": "generate({}, 5)",
    }
    for message, calls in refusals.items():
        for call in calls.split("; "):
            assert page.evaluate(f"tinygpt.{call}.catch(String)").startswith(f"TypeError: {message}"), call


@marked
def test_the_address_brings_back_text_and_token(open_page):
    loaded = checkpoint(TEXT + "\n")
    page = open_page(loaded, fragment="#break&prompt=the+fox%0A&seed=5&temperature=0.5&maxNewTokens=137&token=30")
    until(page, "() => book.index === 29 && location.hash.includes('token=30')")
    expected = python_text(loaded, "the fox\n", 137, Sampling(temperature=0.5), 5)
    assert page.evaluate("book.tokenizer.decode(book.text)") == expected
    assert page.evaluate("book.current") == "break" and "temperature=0.5" in page.evaluate("location.hash")
    assert page.text_content("#text span >> nth=7") == "\n"
    page.fill("#prompt", "the quick brown fox " * 4)
    write(page)
    for index in (60, 150):  # a rival inside a prompt that is longer than the window, and one far behind it
        page.evaluate("index => book.moveTo(index)", index)
        page.fill("#prompt", "not written")
        page.locator("#why .rival").nth(2).click()
        page.wait_for_selector(DONE)
    page.evaluate("Object.assign(byId('maxNewTokens'), {max: 9999, value: 9999})")
    page.locator("#why .rival").nth(3).click()
    until(page, "() => history.state.shown[0].length > writing.from")
    rival = page.evaluate("history.back() ?? book.text[151]")  # while it is being written
    until(page, f"id => book.text[151] !== id && {WRITTEN}", rival)
    page.evaluate("history.forward()")  # the address was that of the whole text
    until(page, f"id => book.text[151] === id && {WRITTEN} && location.hash.endsWith(`&${{writing.shared()}}`)", rival)
    assert "token=151" in page.evaluate("location.hash")
    again = open_page(loaded, fragment=page.evaluate("location.hash"))
    assert again.evaluate("[book.first, ...book.text]") == page.evaluate("[book.first, ...book.text]")
    assert "character" in page.inner_text("#status") and "character" not in again.inner_text("#status")
    again.fill("#guess-paste", TEXT)
    again.locator("#guess-text span").nth(9).click()
    until(again, "() => book.index === 9 && !location.hash.includes('&')")  # a pasted text is private
    assert again.input_value("#prompt") == again.inner_text("#guess-text")
    write(again)  # now it is the prompt
    again.locator("#why .rival").first.click()  # and what is written after it, too
    again.evaluate("showChapter(2)")
    until(again, f"location.hash === '#follow' && {WRITTEN}")
    again.evaluate("document.querySelector('#switches button').click() ?? byId('compare').click() ?? history.go(-2)")
    until(again, f"book.index === 150 && {WRITTEN}")  # nor do the two texts, which stay, reach the address
    again.locator("#text-whole span").first.click()
    until(again, "() => book.index === 0 && !location.hash.includes('&')")


CLIPPED = """[...document.querySelectorAll('#cursor, .chapter :is(small, h3, button, .key, label, .bar-name)')]
    .filter(e => (e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 3) && e.checkVisibility()
        && getComputedStyle(e).display !== 'inline').map(e => e.outerHTML.slice(0, 80))"""
TOPS = """[...document.querySelectorAll('section, .card:not(.steer)')].filter(e => e.checkVisibility())
    .map(e => `${Math.round(e.getBoundingClientRect().top + scrollY)} ${e.id || e.closest('section').id}`)"""
OVERFLOW = "Math.max(...[document.documentElement, byId('follow-way')].map(e => e.scrollWidth - e.clientWidth))"
MEDIA = """([one, other]) => [...document.styleSheets[0].cssRules].filter(rule => rule.media?.mediaText === one)
    .forEach(rule => { rule.media.mediaText = other; })"""
LOOK = "[...['(prefers-color-scheme: dark)', '(forced-colors)'].map(q => matchMedia(q).matches), devicePixelRatio]"
IN_A_FRAME = """text => document.body.appendChild(Object.assign(document.createElement('iframe'),
    {srcdoc: text, sandbox: 'allow-same-origin'}))"""
PAINTING = "getComputedStyle(document.getElementById('map')).filter"
CENTRE = "e => e.getBoundingClientRect().left + e.getBoundingClientRect().width / 2"


@marked
def test_without_javascript_the_page_says_so(browser):
    """In a frame that may not run scripts."""
    save_page(Path("page.html"), checkpoint(), None, "int8", None)
    page = browser.new_page()
    page.evaluate(IN_A_FRAME, Path("page.html").read_text("utf-8"))
    shown = "document.querySelector('iframe').contentDocument.querySelector('noscript p')"
    until(page, f"{shown}?.checkVisibility() && {shown}.innerText.includes('JavaScript is switched off')")
    page.context.close()


DARK, FORCED, ZOOM = {"color_scheme": "dark"}, {"forced_colors": "active"}, {"device_scale_factor": 2}  # at 683: 200%
SCREENS = [(360, DARK), (360, FORCED), (683, ZOOM), (768, {}), (1366, DARK), (1366, FORCED), (3840, {})]
LOST = """[...document.querySelectorAll('canvas, svg *, .bar, .track, .dash, .key, .swatch, .chip, .text span')]
    .filter(e => getComputedStyle(e).forcedColorAdjust !== 'none').map(e => e.outerHTML.slice(0, 60))"""


@marked
@pytest.mark.parametrize("width, screen", SCREENS)
def test_nothing_overflows_jumps_or_is_out_of_reach(open_page, width, screen):
    """Nothing moves downwards while text streams or another token is chosen; in print all chapters are shown."""
    loaded = checkpoint(num_layers=4)
    loaded.origin["val_loss"] = 1.5
    page = open_page(loaded, viewport={"width": width, "height": max(900, width * 9 // 16)}, excerpt=EXCERPT, **screen)
    assert page.evaluate(LOOK) == [screen == DARK, screen == FORCED, 2 if screen == ZOOM else 1]
    assert page.evaluate(LOST) == [] or screen != FORCED
    page.focus("#switches button")  # it looked as if only pressed
    assert screen != FORCED or page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "double"
    before = page.evaluate(TOPS)
    assert page.evaluate(OVERFLOW) <= 0
    page.evaluate("document.getElementById('go').click()")
    while page.locator("#go:has-text('Stop')").count():
        assert page.evaluate(TOPS) == before
    for index in (5, 20):
        page.evaluate("index => book.moveTo(index)", index)
        assert page.evaluate(TOPS) == before
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert page.evaluate(OVERFLOW) <= 0 and page.evaluate(CLIPPED) == []
    assert page.evaluate(PAINTING).startswith("invert") == (screen == DARK)
    page.evaluate(importlib.resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8"))
    for _ in range(2):  # then as a projector shows it, where the page had no heading
        found = page.evaluate("async () => (await axe.run()).violations")  # contrast, names, roles, the keyboard
        assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []
        page.evaluate("document.getElementById('projector').click()")
    if open_page.browser.browser_type.name == "firefox":  # it cannot emulate print: the rules are used on the screen
        page.evaluate(MEDIA, ["print", "screen"])
    else:
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate(PAINTING) == "none", "dark maps were printed on white paper"
        assert page.locator(".see:visible").count() == 8, "what is behind tabs is printed too"
    assert page.locator(":is(button, input, select, textarea):not(.grid button, .rival, .layer):visible").count() == 0
    assert page.evaluate("getComputedStyle(document.querySelector('.top')).position") == "static"
    assert screen == FORCED or page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    hidden = "[...document.querySelectorAll('#text, #follow-steps')].map(e => e.scrollHeight - e.clientHeight)"
    assert max(page.evaluate(hidden)) <= 1


TOO_TALL = """() => [...document.querySelectorAll('.chapter')].flatMap(chapter => {
    const tabs = [...chapter.querySelectorAll('.tabs button')].filter(tab => tab.checkVisibility());
    return [chapter, ...tabs, tabs[0] ?? chapter].filter(one => {
        one.click();
        return chapter.scrollHeight > innerHeight - document.querySelector('.top').offsetHeight + 1
            || [...chapter.querySelectorAll('p')].some(p => p.scrollHeight > p.clientHeight + 3);
    }).map(one => `${chapter.id}: ${one.textContent.trim().slice(0, 12)}`);
})"""


@marked
def test_twelve_heads_fit_a_laptop_and_scroll_on_a_phone(open_page):
    """There Follow fits too, where scroll bars take room."""
    page = open_page(checkpoint(num_heads=12, num_layers=4), viewport={"width": 1366, "height": 768})
    assert page.evaluate("['grid', 'switches'].every(id => byId(id).scrollWidth <= byId(id).clientWidth)")
    assert page.locator("#switches canvas").first.bounding_box()["width"] > 30
    page.set_viewport_size({"width": 360, "height": 720})
    page.evaluate("book.moveTo(5)")
    until(page, "() => document.querySelectorAll('.grid + .note:not([hidden])').length === 2")
    assert not {"follow: Steps", "follow: What to see"} & set(page.evaluate(TOO_TALL))


KEYS = {"temperature": "ArrowRight", "guess-input": "e Enter", "prompt": "Control+Enter"}
KEYS |= {"follow-next": "Enter", "rank": "Space", "compare": "Enter"}
STOP = """() => {
    const e = document.activeElement, box = e.getBoundingClientRect(), header = document.querySelector('.top');
    const top = header.contains(e) ? 0 : header.offsetHeight, shown = box.bottom > top + 9 && box.top < innerHeight - 9;
    return e !== document.body && [e.id, shown && !e.closest('.chapter:not(.now)') && getComputedStyle(e).outlineStyle];
}"""
USABLE = """[...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]')]
    .filter(e => e.id && e.checkVisibility() && !e.disabled).map(e => e.id)"""


@marked
def test_the_keyboard_alone_goes_through_all_chapters(open_page):
    """Tab stops at all that can be used, in sight and with a visible focus, and nothing holds it."""
    page, stops = open_page(checkpoint(), excerpt=EXCERPT), []
    page.evaluate("document.querySelector('#switches button').click()")
    page.keyboard.press("Tab")
    while stop := page.evaluate(STOP):
        assert stop[1] == "solid" and len(stops) < 300, stop
        stops.append(stop[0])
        for key in KEYS.get(stop[0], "").split():
            page.keyboard.press(key)
        page.keyboard.press("Tab")
    assert set(page.evaluate(USABLE)) <= set(stops)
    until(page, "() => document.getElementById('rank-state').textContent.startsWith('Most needed')")
    assert page.evaluate("[guessing.you.length, following.step, writing.options().temperature]") == [1, 1, 0.85]
    assert page.locator("#text-broken span:not(.given)").count() > 1
    for chapter in reversed(page.evaluate("tinygpt.chapters.slice(0, -1)")):
        page.keyboard.press("ArrowLeft")
        assert page.evaluate("[book.current, document.activeElement.id]") == [chapter, f"{chapter}-title"]
    moves = "showChapter(7) ?? ['strip', 'projector'].map(name => scrollY - (byId(name).focus() ?? scrollY))"
    assert page.evaluate(moves) == [0, 0]
