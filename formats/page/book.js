/* The book: one text, the window of it that the model reads, one chosen token, and the chapters that show them.

   How a chapter joins: its section stands in page.html, <section id="NAME" class="chapter">, and its file calls

     book.add({ id: "NAME", setup() {}, model() {}, window() {}, token() {} })

   with any of these, which may return promises:
     setup()   once, before there is a model: listen to buttons.
     model()   the network has changed (and once at the start): build what depends on book.config and book.tokenizer.
     window()  the window has changed: book.ids, as the model reads them, and book.reading has
               what ModelServer.read says of it.
     token()   book.position (in the window) or the chosen head, book.layer and book.head, has changed: book.here has
               what happens there (see ModelServer.token).
   After `model` comes `window`, after `window` comes `token`. A chapter asks with book.ask(question, request) (a method
   of ModelServer), which adds the ids; its answer is late if another token was chosen meanwhile:

     const isNew = book.watch(), answer = await book.ask("token", { t: book.position });
     if (!isNew()) return;

   A section with the attribute `hidden` is no chapter: it has nothing to show. book.moveTo(index in the text),
   book.chooseHead(layer, head), book.setText(...) and book.useModel(...) change what all chapters show.
*/
"use strict";

class Book {
  constructor() {
    this.chapters = [];
    Object.assign(this, { text: [], given: 0, stride: 1, surprises: [], index: 0, start: 0, ids: [], position: 0 });
    Object.assign(this, { layer: 0, head: 0, moves: 0, current: "", projector: false, reading: { habits: [] } });
  }

  add(chapter) {
    this.chapters.push(chapter);
  }

  /** Set up the chapters, in the order of their sections. */
  open(engine) {
    this.engine = engine;
    this.chapters = this.chapters.filter(({ id }) => !byId(id).hidden);
    const order = Array.from(document.querySelectorAll("section.chapter"), (section) => section.id);
    this.chapters.sort((a, b) => order.indexOf(a.id) - order.indexOf(b.id));
    for (const chapter of this.chapters) chapter.setup?.();
    setUpStrip();
    setUpSteps();
  }

  /** Which of the chapters is on the screen. */
  get place() {
    return this.chapters.findIndex(({ id }) => id === this.current);
  }

  ask(question, request = {}, onPart = undefined) {
    return this.engine.ask(question, { ids: this.ids, ...request }, onPart);
  }

  /** A function that says whether all is still as it was when `watch` was called. */
  watch() {
    const moves = this.moves;
    return () => moves === this.moves;
  }

  /** Let all chapters show another network, trained here: {config, weights, tokenizer (as in the page's data)}; without
   * weights the page's own one. */
  async useModel({ config = page.model.config, tokenizer = page.model.tokenizer, weights } = {}) {
    await this.engine.ask("use", { config, tokenizer: weights && tokenizer, weights });
    Object.assign(this, { config, tokenizer: makeTokenizer(tokenizer), trained: Boolean(weights) });
    Object.assign(this, { layer: 0, head: 0, moves: this.moves + 1 });
    for (const chapter of this.chapters) await chapter.model?.();
  }

  /** Show a text: ids, of which the first `given` were not written by the model; the window moved by `stride`.
   * surprises: −ln p of each token, as far as known. index: which token is chosen then. */
  setText(text, { given = text.length, stride = 1, surprises = [], index = text.length - 1 } = {}) {
    Object.assign(this, { text: [...text], given, stride, surprises: [...surprises], ids: [] });
    return this.moveTo(index);
  }

  /** The first token that the model has read: of a long text it reads the end. */
  get firstRead() {
    return Math.max(0, this.given - this.config.max_seq);
  }

  /** Choose a token of the text, and with it the window that the model read when it stood on this token. */
  async moveTo(index) {
    this.moves++;
    const isNew = this.watch(), { max_seq: maxSeq } = this.config;
    this.index = Math.max(this.firstRead, Math.min(this.text.length - 1, index));
    const start = windowStart(this.index + 1, this.given, maxSeq, this.stride);
    const ids = this.text.slice(start, start + maxSeq);
    if (start !== this.start || ids.length !== this.ids.length) {
      const reading = await this.engine.ask("read", { ids });
      if (!isNew()) return;
      Object.assign(this, { start, ids, reading, position: this.index - start });
      reading.surprises.forEach((nats, t) => { this.surprises[start + t] ??= t ? nats : undefined; });
      this.unaware = new Set(this.chapters); // of the new window
      drawStrip();
    }
    const position = this.index - start;
    const here = await this.engine.ask("token", { ids, t: position, id: this.text[this.index + 1] });
    if (!isNew()) return;
    Object.assign(this, { position, here });
    drawCursor();
    const onScreen = this.chapters.filter((chapter) => chapter.id === this.current);
    for (const chapter of new Set([...onScreen, ...this.chapters])) {
      if (this.unaware.delete(chapter)) await chapter.window?.();
      if (isNew()) await chapter.token?.();
      if (!isNew()) return;
    }
  }

  chooseHead(layer, head) {
    Object.assign(this, { layer, head });
    return this.moveTo(this.index);
  }
}

const book = new Book();

// --- The strip: the window under the header --------------------------------------------------------------------------

/** Listen to keys on the strip. */
function setUpStrip() {
  const strip = byId("strip");
  strip.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    book.moveTo(book.index + by).catch(alertUser);
  });
}

/** The window's tokens, each tinted by its surprise. */
function drawStrip() {
  byId("strip").replaceChildren(...book.ids.map((id, t) => {
    const index = book.start + t, kind = `chip ${surpriseClass(book.surprises[index])}`;
    return html("span", { class: kind, "data-index": index }, showToken(book.tokenizer, id));
  }));
}

/** Mark the chosen token, and say what the model expects next. */
function drawCursor() {
  const strip = byId("strip"), { position, ids, text, index } = book, chips = [...strip.children];
  strip.querySelector(".chosen")?.classList.remove("chosen");
  const chip = chips[position], after = text[index + 1], nats = book.surprises[index + 1];
  chip.classList.add("chosen");
  strip.scrollLeft = chip.offsetLeft - strip.offsetLeft - strip.clientWidth / 2;
  const [low, high] = [book.start + 1, book.start + ids.length], token = showToken(book.tokenizer, ids[position]);
  const next = after === undefined ? "" : showToken(book.tokenizer, after);
  const known = nats === undefined ? "" : `, to which the model gave ${percent(Math.exp(-nats))}`;
  for (const [name, value] of [["valuemin", low], ["valuemax", high], ["valuenow", index + 1],
    ["valuetext", `${token}, token ${index + 1}${next && `, before ${next}${known}`}`]]) {
    strip.setAttribute(`aria-${name}`, value);
  }
  byId("cursor").replaceChildren(tokenCode(ids[position], "chosen"), ` token ${index + 1}`,
    ...(next ? [", then ", tokenCode(after), known] : [", the last one"]),
    ` · the model reads tokens ${low} to ${high} of ${text.length}`);
  keepState();
}

// --- Steps from chapter to chapter -----------------------------------------------------------------------------------

/** Show a chapter, by its place among them. */
function showChapter(place) {
  const { chapters } = book, { id } = chapters[Math.max(0, Math.min(chapters.length - 1, place))];
  markChapter(id);
  byId(id).scrollIntoView();
}

/** Note which chapter is on the screen. */
function markChapter(id) {
  book.current = id;
  for (const chapter of book.chapters) byId(chapter.id).classList.toggle("now", chapter.id === id);
  for (const link of byId("contents").children) {
    if (link.hash === `#${id}`) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
    if (link.hash === `#${id}`) byId("contents").scrollLeft = link.offsetLeft - byId("contents").clientWidth / 2;
  }
  keepState();
}

/** One step on (1) or back (-1): to another chapter, or, on a projector, within one that is longer than the screen. */
function step(by) {
  const { scrollTop, scrollHeight } = document.scrollingElement, section = byId(book.current);
  const more = by > 0 ? scrollTop + innerHeight < scrollHeight - 5 : scrollTop > 5;
  if (!book.projector || !more) return showChapter(book.place + by);
  const cut = Array.from(section.children).find((part) => part.getBoundingClientRect().bottom > innerHeight);
  const header = document.querySelector("header").offsetHeight;
  if (by > 0 && cut?.getBoundingClientRect().top > header + 40) return cut.scrollIntoView();
  return scrollBy(0, 0.7 * by * innerHeight);
}

/** The list of chapters in the header, the arrow keys, and the projector's button. */
function setUpSteps() {
  book.chapters.forEach(({ id }, place) => {
    const title = byId(`${id}-title`), link = html("a", { href: `#${id}` }, title.textContent);
    link.dataset.number = title.dataset.number = place + 1;
    link.addEventListener("click", (event) => {
      event.preventDefault();
      showChapter(place);
    });
    byId("contents").append(link);
  });
  byId("back").addEventListener("click", () => step(-1));
  byId("forth").addEventListener("click", () => step(1));
  byId("projector").addEventListener("click", ({ currentTarget: button }) => {
    book.projector = document.body.classList.toggle("projector");
    button.setAttribute("aria-pressed", book.projector);
    showChapter(book.place);
  });
  document.addEventListener("keydown", (event) => {
    const { key, altKey, ctrlKey, metaKey, target } = event, page = { PageUp: -1, PageDown: 1 };
    const by = { ArrowLeft: -1, ArrowRight: 1, ...(book.projector && page) }[key];
    if (!by || altKey || ctrlKey || metaKey || target.closest("input, textarea, select, [tabindex]")) return;
    event.preventDefault();
    step(by);
  });
  addEventListener("scroll", () => { // the chapter at the middle of the screen
    const seen = book.chapters.filter(({ id }) => byId(id).getBoundingClientRect().top < innerHeight / 2).pop();
    if (seen && seen.id !== book.current && !book.projector) markChapter(seen.id);
  }, { passive: true });
}
