"""The HTML page: what is in the file, and, in Chromium, that it computes what PyTorch computes.

The oracles are the Python side: the model itself with the same rounded weights, sampler.py, tokenizer.py and
sampling/inspect.py. Chromium opens the file itself (file://) and is offline.
"""

import json
import random
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import formats.page
from formats.checkpoint import Checkpoint, save_model
from formats.page import principal_components, read_metrics, save_page
from helpers import tiny_config
from sampler import Sampling, SlidingWindow, filter_stages, generate, row_generators
from sampling.inspect import attention_maps, logit_lens
from support.command import UserError
from tiny_decoder import TinyGPT, TinyGPTConfig
from tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer

HOSTILE = "".join(sorted(set("</script><img onerror=alert(1)>{{data}}&\"'\n`$\\ éß€😀\u2028")))
TEXT = "the quick brown fox jumps over the lazy dog. THE DOG! "
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def sharp_model(config: TinyGPTConfig, seed: int = 0) -> TinyGPT:
    """A model with weights so large that its predictions differ clearly, rounded to float16."""
    torch.manual_seed(seed)
    model = TinyGPT(config)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.15 * torch.randn_like(p)
            p.copy_(p.half())
    return model.eval()


def checkpoint(characters: str = TEXT, seed: int = 0, **changes) -> Checkpoint:
    """A model over the characters of a text."""
    tokenizer = CharTokenizer.from_text(characters)
    config = tiny_config(
        vocab_size=tokenizer.vocab_size, **{"max_seq": 32, "embed_dim": 24, "num_layers": 2, **changes}
    )
    return Checkpoint(sharp_model(config, seed), tokenizer, {"corpus": "/home/me/secret/my.txt", "step": 3})


# --- The file --------------------------------------------------------------------------------------------------------


def test_the_file_tells_the_corpus_but_not_where_it_lay(tmp_path):
    save_page(tmp_path / "x.html", checkpoint())
    text = (tmp_path / "x.html").read_text("utf-8")
    assert "my.txt" in text and "secret" not in text


def test_an_origin_of_odd_kinds_is_left_out(tmp_path):
    """A file may hold anything there: numbers that no browser has, lists, dictionaries in dictionaries."""
    loaded = checkpoint()
    loaded.origin = {"step": 10**400, "val_loss": float("nan"), "recipe": {"lr": {"a": 1}}, "floor": None, "seed": [1]}
    save_page(tmp_path / "x.html", loaded)
    assert '"origin": {}' in (tmp_path / "x.html").read_text("utf-8")


def test_nothing_of_a_hostile_vocabulary_or_corpus_is_markup(tmp_path):
    """The vocabulary holds `<` and the template's own braces; the corpus is named like a script's end."""
    loaded = checkpoint(HOSTILE)
    loaded.origin = {"corpus": "</script><script>alert(1)<!--"}
    save_page(tmp_path / "x.html", loaded)
    text = (tmp_path / "x.html").read_text("utf-8")
    data = re.search(r'<script type="application/json" id="model">(.*?)</script>', text, re.DOTALL)[1]
    assert "<" not in data and json.loads(data)["tokenizer"]["characters"] == HOSTILE
    assert "{{" not in text.replace("{{data}}", "") and text.count("</script>") == 2 + len(formats.page.ENGINE) + len(
        formats.page.INTERFACE
    )


def test_a_model_of_small_size_is_under_six_megabytes(tmp_path):
    tokenizer = CharTokenizer("".join(map(chr, range(32, 97))), " ")
    config = TinyGPTConfig(tokenizer.vocab_size, max_seq=256, embed_dim=192, num_heads=3, num_layers=4)
    save_page(tmp_path / "x.html", Checkpoint(TinyGPT(config), tokenizer, {}))
    assert (tmp_path / "x.html").stat().st_size < 6_000_000


def test_a_page_replaces_only_a_page(tmp_path):
    path = tmp_path / "x.html"
    path.write_text("my thesis")
    with pytest.raises(UserError, match="not from this command"):
        save_page(path, checkpoint())
    assert path.read_text() == "my thesis"
    save_page(path, checkpoint(), force=True)
    save_page(path, checkpoint(seed=1))


def test_a_page_too_large_for_browsers_needs_force(tmp_path, monkeypatch):
    monkeypatch.setattr(formats.page, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="--force"):
        save_page(tmp_path / "x.html", checkpoint())
    assert not (tmp_path / "x.html").exists()
    save_page(tmp_path / "x.html", checkpoint(), force=True)


def test_a_weight_too_large_for_float16_is_refused(tmp_path):
    loaded = checkpoint()
    loaded.model.head.weight.data[0, 0] = 1e5
    with pytest.raises(UserError, match="--precision float32"):
        save_page(tmp_path / "x.html", loaded)
    save_page(tmp_path / "x.html", loaded, precision="float32")


def test_damaged_metrics_cost_only_their_lines(tmp_path):
    good = {"step": 1, "train_seconds": 0.5, "train_loss": 3.0, "val_loss": 2.5}
    odd = [{**good, "step": 10**400}, {**good, "val_loss": None}, {**good, "val_loss": 1e999}, []]
    lines = [json.dumps(good), "{torn", '{"step": NaN}', *map(json.dumps, odd), json.dumps(good)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    assert read_metrics(tmp_path / "m.jsonl") == [good, good]
    assert read_metrics(tmp_path / "none.jsonl") == [] == read_metrics(None)


def test_principal_components_of_points_on_a_line():
    along = torch.arange(5.0)
    found = principal_components(torch.stack([along, 2 * along, torch.zeros(5)], dim=1))
    assert found["shares"][0] == pytest.approx(1)
    first = np.array(found["points"])[:, 0]
    np.testing.assert_allclose(np.abs(np.diff(first)), 5**0.5, atol=1e-4)
    assert len(principal_components(torch.ones(1, 1))["points"][0]) == 2


def test_convert_writes_a_page(in_process, tmp_path):
    loaded = checkpoint()
    save_model(tmp_path / "a.pth", loaded.model, loaded.tokenizer, loaded.origin)
    code, out, err = in_process("convert.py", "a.pth", "a.html")
    assert code == 0 and "a.html" in out and f"{(tmp_path / 'a.html').stat().st_size:,}" in out, err


# --- In the browser ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """Chromium, headless; without it the tests are skipped, loudly."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        warnings.warn("NOT TESTED: the page in a browser; needs Chromium and `pip install playwright`", stacklevel=1)
        pytest.skip("needs Chromium and playwright")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """Write a checkpoint's page and open it, offline; at the end there was no request, error or message."""
    opened, noises = [], []

    def open_it(loaded: Checkpoint, width: int = 1280, color_scheme: str = "light", **options):
        path = tmp_path / f"page{len(opened)}.html"
        save_page(path, loaded, **options)
        look = {"viewport": {"width": width, "height": 900}, "color_scheme": color_scheme}
        context = browser.new_context(offline=True, **look)
        page = context.new_page()
        page.on("console", lambda message: noises.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: noises.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (noises.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(("file:", "blob:")) or noises.append(request.url))
        page.goto(path.as_uri())
        opened.append(context)
        page.wait_for_selector("#lens table")  # the text of the start is written and looked at
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
        ids = torch.randint(config.vocab_size, (length,), generator=torch.Generator().manual_seed(length)).tolist()
        found = np.array(page.evaluate("ids => tinygpt.logits(ids)", ids))
        with torch.no_grad():
            np.testing.assert_allclose(found, loaded.model(torch.tensor([ids]))[0], rtol=0, atol=1e-3)
        maps = page.evaluate("async ids => (await tinygpt.attention(ids)).map(layer => Array.from(layer))", ids)
        expected = attention_maps(loaded.model, ids)
        np.testing.assert_allclose(np.array(maps).reshape(expected.shape), expected, atol=1e-4)
        lens = page.evaluate("async ids => (await tinygpt.lens(ids)).map(layer => Array.from(layer))", ids)
        expected = logit_lens(loaded.model, ids)
        np.testing.assert_allclose(np.array(lens).reshape(expected.shape), expected, atol=1e-3)


def python_text(loaded: Checkpoint, prompt: str, count: int, sampling: Sampling, seed: int, stride=None) -> str:
    """What generate.py writes."""
    ids = loaded.tokenizer.encode(prompt) or [loaded.tokenizer.start_id]
    window = SlidingWindow(loaded.model, [ids], stride)
    steps = generate(window, count, row_generators(seed, 1), sampling, loaded.tokenizer.special_ids)
    return prompt + loaded.tokenizer.decode([token for (token,) in steps])


@marked
@pytest.mark.parametrize("stride", [None, 1, 5, 32])
def test_greedy_text_is_that_of_generate(open_page, stride):
    """Two hundred tokens: far beyond the window."""
    loaded = checkpoint()
    given = {"prompt": "the quick", "maxNewTokens": 200, "temperature": 0} | ({"stride": stride} if stride else {})
    found = open_page(loaded).evaluate("given => tinygpt.generate(given)", given)
    assert found == python_text(loaded, "the quick", 200, Sampling(temperature=0.0), 0, stride)


@marked
@pytest.mark.parametrize("seed", [0, 1, 1337, 2**31 + 5, 2**40 + 7])
def test_a_seed_gives_the_text_of_generate(open_page, seed):
    loaded = checkpoint()
    page = open_page(loaded)
    uniforms = page.evaluate(
        "seed => { const m = new Mersenne(seed); return Array.from({length: 1000}, () => m.uniform()); }", seed
    )
    assert uniforms == torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).tolist()
    options = {"temperature": 0.9, "topK": 12, "topP": 0.95, "minP": 0.01, "repetitionPenalty": 1.1}
    sampling = Sampling(*options.values())
    for prompt in ("the dog", ""):
        given = {"prompt": prompt, "maxNewTokens": 200, "seed": seed, **options}
        found = page.evaluate("given => tinygpt.generate(given)", given)
        assert found == python_text(loaded, prompt, 200, sampling, seed)


@marked
def test_filters_are_those_of_the_sampler(open_page):
    page = open_page(checkpoint())
    chance = random.Random(0)
    for number in range(200):
        size = chance.choice([1, 2, 5, 40, 300])
        torch.manual_seed(number)
        logits = torch.randn(1, size) * chance.choice([0.1, 1, 5])
        if chance.random() < 0.3:
            logits = logits.round()  # equal logits
        if size > 2 and chance.random() < 0.3:
            logits[0, chance.randrange(size)] = -torch.inf
        seen = torch.rand(1, size) < 0.3
        sampling = Sampling(
            chance.choice([0, 0.05, 0.7, 1, 2]),
            chance.choice([0, 1, 3, 1000]),
            chance.choice([1e-6, 0.3, 0.9, 1.0]),
            chance.choice([0, 0.05, 1.0]),
            chance.choice([1, 0.8, 1.3]),
        )
        options = dict(
            zip(("temperature", "topK", "topP", "minP", "repetitionPenalty"), vars(sampling).values(), strict=True)
        )
        found = page.evaluate(
            "([logits, seen, options]) => filterStages(Float32Array.from(logits), new Set(seen), options)"
            ".map(stage => [stage.name, Array.from(stage.logits)])",
            [logits[0].tolist(), seen[0].nonzero()[:, 0].tolist(), options],
        )
        expected = filter_stages(logits, seen, sampling)
        assert [name for name, _ in found] == [name for name, _ in expected]
        for (name, mine), (_, theirs) in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, theirs[0], rtol=1e-6, err_msg=f"case {number}, {name}, {sampling}")


def random_texts(count: int) -> list[str]:
    """Strings of every kind of character: words, white space, letters of many scripts, emoji, half surrogate pairs."""
    chance = random.Random(1)
    words = "the I'll don't we've 123 ½ naïve straße Привет 你好 日本 ไทย 👩 é \u0301 \ufeff \u0085 \u3000 \xa0 ' 's"
    words = [*words.split(" "), "<bos>"]
    spaces = [" ", "  ", "\n", "\n\n ", "\t", "\r\n", "\u2028", ""]
    texts = ["", " ", "x" * 700, " " * 300 + "a", "'s" * 200]
    while len(texts) < count:
        if chance.random() < 0.5:
            texts.append("".join(chance.choice(words) + chance.choice(spaces) for _ in range(chance.randrange(1, 12))))
        else:
            ranges = [(0, 0x7F), (0x80, 0x24F), (0x370, 0x3FF), (0x4E00, 0x9FA5), (0x1F300, 0x1F5FF), (0xD800, 0xDFFF)]
            texts.append("".join(chr(chance.randint(*chance.choice(ranges))) for _ in range(chance.randrange(1, 40))))
    return texts


@marked
@pytest.mark.filterwarnings("ignore::tokenizer.UnknownCharacterWarning")
def test_bpe_is_that_of_python(open_page):
    texts = random_texts(300)
    tokenizer = BPETokenizer.train(
        [TEXT * 20, *(text.encode("utf-8", "replace").decode() for text in texts[:150])], 600
    )
    config = tiny_config(vocab_size=tokenizer.vocab_size, max_seq=16, embed_dim=8)
    loaded = Checkpoint(sharp_model(config), tokenizer, {})
    page = open_page(loaded)
    found = page.evaluate(
        "texts => texts.map(text => tinygpt.encode(text))", [text for text in texts if not has_half(text)]
    )
    assert found == [tokenizer.encode(text) for text in texts if not has_half(text)]
    codes = [[ord(c) for c in text] for text in texts]  # half pairs do not travel as strings
    from_codes = "codes => codes.map(c => tinygpt.encode(String.fromCodePoint(...c)))"
    for text, code, ids in zip(texts, codes, page.evaluate(from_codes, codes), strict=True):
        assert ids == tokenizer.encode(joined_pairs(text)), code
    every = [[i] for i in range(tokenizer.vocab_size)] + [
        tokenizer.encode(text) for text in texts if not has_half(text)
    ]
    assert page.evaluate("all => all.map(ids => tinygpt.decode(ids))", every) == [
        tokenizer.decode(ids) for ids in every
    ]
    shown = page.evaluate("() => tinygpt.generate({prompt: 'é', maxNewTokens: 60, seed: 3})")
    assert shown == python_text(loaded, "é", 60, Sampling(temperature=0.8), 3)


@marked
def test_a_text_ends_at_gpt2s_end_of_text(open_page):
    """The token may be sampled, adds nothing, and nothing comes after it: as generate.py without --ignore-eos."""
    learned = BPETokenizer.train([TEXT], 270)
    tokenizer = BPETokenizer([END_OF_TEXT, *learned.tokens[1:]], learned.merges)
    loaded = Checkpoint(sharp_model(tiny_config(vocab_size=tokenizer.vocab_size, embed_dim=24)), tokenizer, {})
    loaded.model.head.weight.data[tokenizer.eos_id] *= 4
    page = open_page(loaded)
    lengths = set()
    for seed in range(8):
        window, made = SlidingWindow(loaded.model, [tokenizer.encode("the")]), []
        for (token,) in generate(window, 200, row_generators(seed, 1), Sampling(temperature=0.8), ()):
            made.append(token)
            if token == tokenizer.eos_id:
                break
        given = {"prompt": "the", "maxNewTokens": 200, "seed": seed}
        assert page.evaluate("given => tinygpt.generate(given)", given) == "the" + tokenizer.decode(made)
        lengths.add(len(made))
    assert len(lengths) > 1


def has_half(text: str) -> bool:
    """Whether a text holds half a surrogate pair."""
    return any(0xD800 <= ord(c) < 0xE000 for c in text)


def joined_pairs(text: str) -> str:
    """The text as JavaScript has it: two halves of a pair side by side are one character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


@marked
def test_characters_are_those_of_the_tokenizer(open_page):
    tokenizer = CharTokenizer.from_text(HOSTILE + "\ufffd")
    config = tiny_config(vocab_size=tokenizer.vocab_size, max_seq=32)
    page = open_page(Checkpoint(sharp_model(config), tokenizer, {}))
    for text in (HOSTILE, "\ufffd", "", "😀</script>"):
        assert page.evaluate("text => tinygpt.encode(text)", text) == tokenizer.encode(text)
        assert page.evaluate("text => tinygpt.decode(tinygpt.encode(text))", text) == text
    assert page.evaluate("tinygpt.encode('xQ😀')")[:2] == [0, 0]
    assert page.evaluate("tinygpt.decode([0, 1])") == "\ufffd"


@marked
def test_no_script_of_a_hostile_vocabulary_runs_and_every_panel_is_drawn(open_page):
    """The prompt, the text, the tables and the maps are full of markup; `open_page` checks that nothing came of it."""
    loaded = checkpoint(HOSTILE * 2)
    loaded.origin = {
        "corpus": "<img src=x onerror=alert(1)>",
        "bigram_entropy": 2.0,
        "floor": 1.0,
        "recipe": {"lr": 0.1},
    }
    page = open_page(loaded)
    page.fill("#prompt", "</script><img onerror=alert(1)>")
    page.click("#go")
    page.wait_for_selector("#go:enabled")
    page.wait_for_selector("#lens table")
    assert page.evaluate("document.querySelectorAll('img, script:not([class]):not([type])').length") == len(
        formats.page.INTERFACE
    )
    for panel in (
        "#text span",
        "#why table .bar",
        "#grid canvas",
        "#looks .bar",
        "#lens .bar",
        "#next .bar",
        "#token-map text",
        "#position-map polyline",
        "#recipe td",
    ):
        assert page.locator(panel).count() > 0, panel
    assert page.inner_text("#text").startswith("</script><img onerror=alert(1)>")


@marked
def test_a_connection_is_forbidden(open_page):
    page = open_page(checkpoint())
    refused = page.evaluate("fetch('https://example.org').then(() => 'connected', () => 'refused')")
    assert refused == "refused"
    assert "Content Security Policy" in open_page.noises[0]
    open_page.noises.clear()


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
    whole = loss_of(loaded.model, ids)
    loaded.model.blocks[0].attention.out_proj.weight.data[:, 12:] = 0
    without = loss_of(loaded.model, ids)
    numbers = [float(number) for number in re.findall(r"\d+\.\d{3}", after)]
    assert numbers[0] == pytest.approx(whole, abs=2e-3) and numbers[1] == pytest.approx(without, abs=2e-3)


def loss_of(model: TinyGPT, ids: list[int]) -> float:
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(model(torch.tensor([ids]))[0, :-1], torch.tensor(ids[1:])))


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
    page.evaluate(
        "document.getElementById('maxNewTokens').max = 1e6; document.getElementById('maxNewTokens').value = 1e6"
    )
    page.click("#go")
    page.wait_for_selector("#text span >> nth=20")
    page.click("#stop")
    page.wait_for_selector("#go:enabled")
    assert 20 < page.locator("#text span").count() < 1e5
    refused = page.evaluate("tinygpt.generate({temperature: -1}).catch(error => error.message)")
    assert refused.startswith("temperature must be a number from 0")
    assert "window of 256" in page.evaluate("tinygpt.logits(Array(300).fill(2)).catch(error => error.message)")
    assert "is no token id" in page.evaluate("tinygpt.logits([99]).catch(error => error.message)")


@marked
@pytest.mark.parametrize("width", [360, 768, 1280, 2560])
def test_nothing_overflows_and_nothing_jumps(open_page, width):
    """Neither sideways at any width, nor downwards while text streams or another token is chosen."""
    page = open_page(checkpoint(), width=width)
    places = (
        "[...document.querySelectorAll('section, .card')].map(e => Math.round(e.getBoundingClientRect().top + scrollY))"
    )
    before = page.evaluate(places)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.evaluate("document.getElementById('go').click()")
    while page.locator("#go:disabled").count():
        assert page.evaluate(places) == before
    page.fill("#token", "5")
    assert page.evaluate(places) == before


@marked
def test_every_control_has_a_name(open_page):
    page = open_page(checkpoint())
    named = (
        "e.labels?.length || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.textContent.trim()"
    )
    controls = "[...document.querySelectorAll('button, input, textarea, [role=img], [tabindex]')]"
    unnamed = page.evaluate(f"{controls}.filter(e => !({named})).map(e => e.outerHTML.slice(0, 80))")
    assert unnamed == []


# The contrast of every text on the page with what lies behind it, by the formula of WCAG 2.1; those below 4.5.
CONTRAST = """
() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const over = (top, base) => [0, 1, 2].map((c) => top[c] * (top[3] ?? 1) + base[c] * (1 - (top[3] ?? 1)));
  const mixed = (text) => text.startsWith("color(srgb")
    ? parse(text.slice(10)).map((v, c) => c < 3 ? 255 * v : v) : parse(text);
  const behind = (e) => !e ? parse(getComputedStyle(document.body).backgroundColor)
    : over(mixed(getComputedStyle(e).backgroundColor), behind(e.parentElement));
  const light = (rgb) => rgb.map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, c) => sum + v * [0.2126, 0.7152, 0.0722][c], 0);
  const dim = (e) => !e ? 1 : Number(getComputedStyle(e).opacity) * dim(e.parentElement);
  return [...document.querySelectorAll("main *, header *, footer *")].filter((e) => e.checkVisibility() && !e.disabled
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())).flatMap((e) => {
      const style = getComputedStyle(e), back = behind(e);
      const ink = parse(e instanceof SVGElement ? style.fill : style.color);
      const [a, b] = [light(over([...ink.slice(0, 3), dim(e)], back)), light(back)];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      return ratio < 4.5 ? [`${e.outerHTML.slice(0, 60)}: ${ratio.toFixed(2)}`] : [];
  });
}
"""


@marked
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_every_text_has_contrast(open_page, colours):
    page = open_page(checkpoint(), color_scheme=colours)
    page.fill("#place", "20")
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert page.evaluate(CONTRAST) == []


@marked
def test_without_javascript_the_page_says_so(browser, tmp_path):
    save_page(tmp_path / "x.html", checkpoint())
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(Path(tmp_path / "x.html").as_uri())
    assert "JavaScript is switched" in page.inner_text("noscript")
    context.close()
