/* The book: one text, the window of it that the model reads, one chosen token, and the chapters that show them.

   How a chapter joins: its section stands in page.html, <section id="NAME" class="chapter">, and its file calls
   book.chapters.push({ id: "NAME", setup() {}, model() {}, window() {}, token() {} }) with any of these, in this order:
     setup()   once, before there is a model: listen to buttons.
     model()   the network has changed (and once at the start): build what depends on book.config and book.tokenizer.
     window()  the window has changed: book.ids, as the model reads them; book.reading is what ModelServer.look says.
     token()   book.position (in the window) or the chosen head, book.layer and book.head, has changed: book.here is
               what happens there (see ModelServer.token). It may return a promise.
   A chapter asks with book.ask(question, request) (a method of ModelServer), which adds the ids; its answer is late if
   another token was chosen meanwhile: const isNew = book.watch() before, if (!isNew()) return; after.
*/

class Book {
  constructor() {
    Object.assign(this, { chapters: [], text: [], given: 0, stride: 1, surprises: [], index: 0, start: 0, ids: [] });
    Object.assign(this, { position: 0, layer: 0, head: 0, moves: 0, current: "", reading: { habits: [] } });
  }

  open(engine) {
    this.engine = engine;
    const order = Array.from(document.querySelectorAll("section.chapter"), (section) => section.id);
    this.chapters.sort((a, b) => order.indexOf(a.id) - order.indexOf(b.id));
    for (const chapter of this.chapters) chapter.setup?.();
    byId("strip").addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      this.moveTo(this.index + by);
    });
    document.addEventListener("click", ({ target }) => { // any token anywhere that has a place in the text
      const index = target.closest("[data-index]")?.dataset.index;
      if (index !== undefined) this.moveTo(Number(index));
    });
    setUpSteps();
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
    for (const chapter of this.chapters) chapter.model?.();
  }

  /** Begin a text: ids that were not written by the model, which adds others, and moves its window by `stride`. */
  begin(text, stride) {
    Object.assign(this, { text: [...text], given: text.length, stride, surprises: [], ids: [] });
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
      const reading = await this.ask("look", { ids });
      if (!isNew()) return;
      Object.assign(this, { start, ids, reading, position: this.index - start });
      reading.surprises.forEach((nats, t) => { this.surprises[start + t] ??= t ? nats : undefined; });
      this.unaware = new Set(this.chapters); // of the new window
      drawStrip();
    }
    const position = this.index - start, after = this.text[this.index + 1];
    const here = await this.ask("token", { ids, t: position, id: after });
    if (!isNew()) return;
    Object.assign(this, { position, after, here });
    drawCursor();
    const onScreen = this.chapters.filter((chapter) => chapter.id === this.current);
    for (const chapter of new Set([...onScreen, ...this.chapters])) {
      if (this.unaware.delete(chapter)) chapter.window?.();
      await chapter.token?.();
      if (!isNew()) return;
    }
  }

  /** index: layer * num_heads + head. */
  chooseHead(index) {
    const { num_heads: heads } = this.config;
    Object.assign(this, { layer: Math.floor(index / heads), head: index % heads });
    this.moveTo(this.index);
  }
}

const book = new Book();

function drawStrip() {
  byId("strip").replaceChildren(...book.ids.map((id, t) => html("span", {
    class: `chip ${surpriseClass(book.surprises[book.start + t])}`, "data-index": book.start + t,
  }, showToken(book.tokenizer, id))));
}

/** Mark the chosen token, and say what the model expects next. */
function drawCursor() {
  const strip = byId("strip"), { position, ids, text, index, after, start } = book;
  strip.querySelector(".chosen")?.classList.remove("chosen");
  const chip = strip.children[position], nats = book.surprises[index + 1];
  chip.classList.add("chosen");
  strip.scrollLeft = chip.offsetLeft - strip.offsetLeft - strip.clientWidth / 2;
  const known = nats === undefined ? "" : `, to which the model gave ${percent(Math.exp(-nats))}`;
  byId("cursor").replaceChildren(tokenCode(ids[position], "chosen"), ` token ${index + 1}`,
    ...(after === undefined ? [", the last one"] : [", then ", tokenCode(after), known]),
    ` · the model reads tokens ${start + 1} to ${start + ids.length} of ${text.length}`);
  const values = { valuemin: start + 1, valuemax: start + ids.length, valuenow: index + 1,
    valuetext: byId("cursor").textContent };
  for (const [name, value] of Object.entries(values)) strip.setAttribute(`aria-${name}`, value);
  keepState();
}

const isProjected = () => document.body.classList.contains("projector");

function showChapter(place) {
  const { id } = book.chapters[Math.max(0, Math.min(book.chapters.length - 1, place))];
  markChapter(id);
  byId(id).scrollIntoView();
}

function markChapter(id) {
  book.current = id;
  for (const link of byId("contents").children) {
    const current = link.hash === `#${id}`;
    byId(link.hash.slice(1)).classList.toggle("now", current);
    link.setAttribute("aria-current", current);
    if (current) byId("contents").scrollLeft = link.offsetLeft - byId("contents").clientWidth / 2;
  }
  keepState();
}

/** One step on (1) or back (-1): to another chapter, or, on a projector, within one that is longer than the screen. */
function step(by) {
  const { scrollTop, scrollHeight } = document.scrollingElement, parts = Array.from(byId(book.current).children);
  const more = by > 0 ? scrollTop + innerHeight < scrollHeight - 5 : scrollTop > 5;
  if (!more || !isProjected()) return showChapter(book.chapters.findIndex(({ id }) => id === book.current) + by);
  const cut = by > 0 && parts.find((part) => part.getBoundingClientRect().bottom > innerHeight);
  if (cut && cut.getBoundingClientRect().top > 0.3 * innerHeight) return cut.scrollIntoView();
  return scrollBy(0, 0.7 * by * innerHeight);
}

function setUpSteps() {
  book.chapters.forEach(({ id }, place) => {
    const onclick = (event) => {
      event.preventDefault();
      showChapter(place);
    };
    const title = byId(`${id}-title`);
    title.dataset.number = place + 1;
    byId("contents").append(html("a", { href: `#${id}`, "data-number": place + 1, onclick }, title.textContent));
  });
  byId("back").addEventListener("click", () => step(-1));
  byId("forth").addEventListener("click", () => step(1));
  byId("projector").addEventListener("click", ({ currentTarget: button }) => {
    button.setAttribute("aria-pressed", document.body.classList.toggle("projector"));
    byId(book.current).scrollIntoView();
  });
  const keepTop = ([{ target }]) => document.documentElement.style.setProperty("--top", `${target.offsetHeight}px`);
  new ResizeObserver(keepTop).observe(document.querySelector(".top"));
  document.addEventListener("keydown", (event) => {
    const { key, altKey, ctrlKey, metaKey, target } = event;
    const by = { ArrowLeft: -1, ArrowRight: 1, ...(isProjected() && { PageUp: -1, PageDown: 1 }) }[key];
    if (!by || altKey || ctrlKey || metaKey || target.closest("input, textarea, select, [tabindex]")) return;
    event.preventDefault();
    step(by);
  });
  addEventListener("scroll", () => { // the chapter at the middle of the screen
    const seen = book.chapters.filter(({ id }) => byId(id).getBoundingClientRect().top < innerHeight / 2).pop();
    if (seen && seen.id !== book.current && !isProjected()) markChapter(seen.id);
  }, { passive: true });
}
