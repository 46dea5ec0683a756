/* The book: one text, the window of it that the model reads, one chosen token, and the chapters that show them.

   A chapter is a section of page.html, <section id="NAME" class="chapter">, and { id: "NAME", … } in book.chapters,
   with any of these methods, which are called in this order:
     setup()   once, before there is a model: listen to buttons.
     model()   the network has changed: build what depends on book.config and book.tokenizer.
     window()  the window has changed: book.ids, as the model reads them; book.reading is what ModelServer.look says.
     token()   book.position, book.layer or book.head has changed: book.here is what ModelServer.token says. */

class Book {
  constructor() {
    Object.assign(this, { chapters: [], index: 0, start: 0, position: 0, layer: 0, head: 0, moves: 0, current: "" });
    this.begin([], 0, 0, 1, []);
  }

  open(engine) {
    this.engine = engine;
    for (const chapter of this.chapters) chapter.setup?.();
    byId("strip").addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      this.moveTo(this.index + by);
    });
    byId("strip").addEventListener("mousedown", (event) => { // who clicks here leaves the arrow keys to the chapters
      event.preventDefault();
      document.activeElement.blur();
    });
    document.addEventListener("click", ({ target }) => this.press(target));
    document.addEventListener("keydown", ({ key, target }) => { // Enter in a text: its last token
      if (key === "Enter" && target.matches(".text")) this.press(target.querySelector("span:last-child") ?? target);
    });
    setUpSteps();
  }

  /** Ask a method of ModelServer about the ids of the window, if the request has no others. */
  ask(question, request = {}, onPart = undefined) {
    return this.engine.ask(question, { ids: this.ids, ...request }, onPart);
  }

  /** Let all chapters show a network: {config, tokenizer, weights, excerpt, prompt}, without weights the page's own. */
  async useModel(model) {
    const { config, tokenizer, weights } = model;
    this.begin([], 0, 0, 1, []); // nothing more is asked about the old text: the new network may not be able to read it
    await this.engine.ask("use", { config, tokenizer, weights });
    Object.assign(this, { model, config, tokenizer: makeTokenizer(tokenizer), trained: !!weights, layer: 0, head: 0 });
    for (const chapter of this.chapters) chapter.model?.();
  }

  /** Begin a text, to which the model will add tokens. given: how many of it were not written by the model. first: the
   * first one that the model reads, of a long text. stride: by how much its window moves. */
  begin(text, given, first, stride, surprises) {
    const moves = this.moves + 1;
    Object.assign(this, { text: [...text], given, first, stride, surprises, ids: [], here: undefined, moves });
  }

  /** Choose the token that was pressed, in whatever text it stands. */
  press(target) {
    const place = target.closest("[data-index]"), span = target.closest(".text span:not(.note)");
    if (place) this.moveTo(Number(place.dataset.index));
    else if (span && this.text.length) writing.take(span); // else there is no model yet
  }

  /** Choose a token of the text, and with it the window that the model read when it stood on this token. Answers of the
   * worker come too late if another token was chosen meanwhile. */
  async moveTo(index) {
    if (!this.text.length) return; // there is no model yet
    const moves = ++this.moves, { max_seq: maxSeq } = this.config;
    this.index = Math.max(this.first, Math.min(this.text.length - 1, index));
    const start = windowStart(this.index + 1, this.first, maxSeq, this.stride);
    const ids = this.text.slice(start, start + maxSeq);
    if (start !== this.start || ids.length !== this.ids.length) {
      const reading = await this.ask("look", { ids });
      if (moves !== this.moves) return;
      Object.assign(this, { start, ids, reading, position: this.index - start });
      reading.surprises.forEach((nats, t) => { this.surprises[start + t] ??= t ? nats : undefined; });
      this.unaware = new Set(this.chapters); // of the new window
      byId("strip").replaceChildren(...ids.map((id, t) => html("span", {
        class: `chip ${surpriseClass(this.surprises[start + t])}`, "data-index": start + t,
      }, showToken(this.tokenizer, id))));
    }
    const position = this.index - start, after = this.text[this.index + 1];
    const here = await this.ask("token", { ids, t: position, id: after });
    if (moves !== this.moves) return;
    Object.assign(this, { position, after, here });
    drawCursor();
    for (const chapter of this.chapters) {
      if (this.unaware.delete(chapter)) chapter.window?.();
      await chapter.token?.();
      if (moves !== this.moves) return;
    }
  }

  chooseHead(index) { // layer * num_heads + head
    const { num_heads: heads } = this.config;
    Object.assign(this, { layer: Math.floor(index / heads), head: index % heads });
    this.moveTo(this.index);
  }
}

const book = new Book();

function drawCursor() {
  const strip = byId("strip"), { position, ids, text, index, after, start } = book;
  strip.querySelector(".chosen")?.classList.remove("chosen");
  const chip = strip.children[position], nats = book.surprises[index + 1];
  chip.classList.add("chosen");
  strip.scrollLeft = chip.offsetLeft - strip.clientWidth / 2;
  const last = ids[position] === book.tokenizer.endId ? ", the end of the text" : ", the last one";
  const known = nats === undefined ? "" : ` (probability ${percent(Math.exp(-nats))})`;
  byId("cursor").replaceChildren(tokenCode(ids[position], "chosen"), ` token ${index + 1}`,
    ...(after === undefined ? [last] : [", then ", nextToken(after), known]),
    ` · the model reads tokens ${start + 1} to ${index + 1} of ${text.length}`);
  const values = { valuemin: start + 1, valuemax: start + ids.length, valuenow: index + 1,
    valuetext: byId("cursor").textContent };
  for (const [name, value] of Object.entries(values)) strip.setAttribute(`aria-${name}`, value);
  keepState();
}

const isProjected = () => document.body.classList.contains("projector") && byId("projector").offsetParent;

function showChapter(place) {
  const { id } = book.chapters[place];
  markChapter(id);
  byId(id).scrollIntoView();
  if (!byId(id).contains(document.activeElement)) byId(`${id}-title`).focus({ preventScroll: true });
}

function markChapter(id) {
  const contents = byId("contents");
  book.current = id;
  for (const link of contents.children) {
    const current = link.hash === `#${id}`;
    byId(link.hash.slice(1)).classList.toggle("now", current);
    link.setAttribute("aria-current", current);
    if (current) contents.scrollLeft = link.offsetLeft + (link.offsetWidth - contents.clientWidth) / 2;
  }
  keepState();
}

/** What does not fit on one screen stands behind tabs: on a narrow screen, an element with data-narrow="A, B" is shown
 * while tab A or tab B is open; on a wide one, data-wide says it. part.openTab() opens the first tab (if both, A). */
function setUpTabs(chapter, kind) {
  chapter.querySelector(".see").dataset.narrow ??= "What to see"; // or below tabs that leave room
  const parts = Array.from(chapter.querySelectorAll(`[data-${kind}]`), (one) => [one, one.dataset[kind].split(", ")]);
  const box = html("div", { class: `tabs for-${kind}`, role: "group", "aria-label": "Parts of this chapter" });
  const open = (name) => {
    box.dataset.open = name;
    for (const [part, names] of parts) part.classList.toggle(`off-${kind}`, !names.includes(name));
    for (const button of box.children) button.setAttribute("aria-pressed", button.textContent === name);
  };
  const names = [...new Set(parts.flatMap((part) => part[1]))];
  box.append(...names.map((name) => html("button", { type: "button", onclick: () => open(name) }, name)));
  parts.forEach(([part, [name]]) => { part.openTab ??= () => open(name); });
  chapter.querySelector(".ask").after(box);
  open(names[0]);
}

function setUpSteps() {
  book.chapters.forEach(({ id }, place) => {
    const onclick = (event) => {
      event.preventDefault();
      showChapter(place);
    };
    byId(id).inert = true; // until the model can be trusted
    const title = byId(`${id}-title`);
    title.dataset.number = place + 1;
    for (const kind of ["narrow", "wide"]) setUpTabs(byId(id), kind);
    byId("contents").append(html("a", { href: `#${id}`, "data-number": place + 1, onclick }, title.textContent));
  });
  byId("projector").addEventListener("click", ({ currentTarget: button }) => {
    button.setAttribute("aria-pressed", document.body.classList.toggle("projector"));
    byId(book.current).scrollIntoView();
  });
  const keepTop = ([{ target }]) => document.documentElement.style.setProperty("--top", `${target.offsetHeight}px`);
  new ResizeObserver(keepTop).observe(document.querySelector(".top"));
  document.addEventListener("keydown", (event) => {
    const { key, altKey, ctrlKey, metaKey, defaultPrevented, target } = event, box = target.closest('[tabindex="0"]');
    const by = { ArrowLeft: -1, ArrowRight: 1, ...(isProjected() && { PageUp: -1, PageDown: 1 }) }[key];
    if (!by || altKey || ctrlKey || metaKey || defaultPrevented || target.value || target.matches("textarea")) return;
    if (box && box.scrollWidth > box.clientWidth) return; // there the keys scroll sideways
    event.preventDefault();
    const place = book.chapters.findIndex(({ id }) => id === book.current) + by; // one on, or one back
    if (book.chapters[place]) showChapter(place);
  });
  document.addEventListener("keyup", ({ key, target }) => { // Tab came into another chapter, which may be half in sight
    const place = book.chapters.findIndex(({ id }) => id === target.closest(".chapter")?.id);
    if (key !== "Tab" || place < 0 || book.chapters[place].id === book.current) return;
    showChapter(place);
    target.scrollIntoView({ block: "nearest" });
  });
  addEventListener("scroll", () => { // the chapter at the middle of the screen
    const seen = book.chapters.filter(({ id }) => byId(id).getBoundingClientRect().top < innerHeight / 2).pop();
    if (seen && seen.id !== book.current && !isProjected()) markChapter(seen.id);
  }, { passive: true });
}
