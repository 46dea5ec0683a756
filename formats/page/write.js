/* Chapter "Write": a prompt, how to sample, the text as it comes, and what could have come instead. */

/** The sliders: option of generate, label, minimum, maximum, step, first value, what it does. */
function sliderList({ vocab_size: V, max_seq: maxSeq }) {
  return [
    ["maxNewTokens", "Length", 0, 5000, 50, 200, "tokens to add; 0: only read the prompt"],
    ["temperature", "Temperature", 0, 2, 0.05, 0.8, "0: always the likeliest; above 1: wilder"],
    ["topK", "Top-k", 0, Math.min(V, 100), 1, 0, "only the k likeliest; 0: all"],
    ["topP", "Top-p", 0.05, 1, 0.05, 1, "the fewest tokens that reach this total; 1: all"],
    ["minP", "Min-p", 0, 0.5, 0.01, 0, "drop tokens below this share of the top one; 0: all"],
    ["repetitionPenalty", "Repetition penalty", 1, 2, 0.05, 1, "above 1: tokens of the text become less likely"],
    ["stride", "Stride", 1, maxSeq, 1, Math.max(1, Math.floor(maxSeq / 2)), "tokens dropped when the window is full"],
  ];
}

const writing = {
  id: "write", spans: [], pause: 0,

  setup() {
    byId("controls").addEventListener("submit", (event) => {
      event.preventDefault();
      this.press();
      byId("text").scrollIntoView({ block: "nearest" }); // on a phone it may be below the screen
    });
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.press();
    });
    byId("dice").addEventListener("click", () => { byId("seed").value = Math.floor(Math.random() * 2 ** 31); });
    byId("seed").addEventListener("input", () => this.checkSeed());
    byId("prompt").addEventListener("input", () => this.checkPrompt());
    const names = ["over 50%", "25 to 50%", "10 to 25%", "3 to 10%", "1 to 3%", "under 1%"];
    const swatches = names.map((name, level) => html("span", { class: `swatch s${level}`, title: name }, "\u00a0"));
    byId("legend").append(" ", ...swatches, " surprising");
  },

  /** The network's shape bounds the sliders, which are fields of the form. */
  model() {
    const sliders = sliderList(book.config).map(([name, label, min, max, step, value, hint]) => {
      const output = html("output", { for: name }, value), range = { type: "range", min, max, step, value };
      const input = html("input", { id: name, name, form: "controls", ...range, "aria-describedby": `${name}-hint` });
      input.addEventListener("input", () => {
        output.textContent = input.value;
        this.token();
      });
      return html("div", { class: "slider" }, html("label", { for: name }, label), output, input,
        html("small", { id: `${name}-hint` }, hint));
    });
    byId("sliders").replaceChildren(...sliders.slice(0, 3));
    byId("more").replaceChildren(...sliders.slice(3));
  },

  /** Say which characters of the prompt the model has never seen. */
  checkPrompt() {
    const unknown = book.tokenizer.unknown?.(byId("prompt").value) ?? []; // bytes are all known
    const warning = `The model has never seen ${unknown.slice(0, 8).join(" ")}: read as “unknown”.`;
    byId("prompt-note").textContent = unknown.length ? escapeInvisible(warning) : "The model continues this text.";
  },

  /** Whether the seed is one; if not, it is shown and said. */
  checkSeed() {
    const good = /^\d{1,15}$/.test(byId("seed").value.trim()), { precision } = page.model;
    const exact = precision === "float32" ? "" : `; in ${precision} not always the text of generate.py`;
    byId("seed").setAttribute("aria-invalid", !good);
    const advice = good ? `the same seed gives the same text${exact}` : "a whole number from 0, please";
    byId("seed-note").textContent = advice;
    if (!good) byId("seed").focus();
    return good;
  },

  /** What the form asks for, without the prompt. */
  options() {
    const { prompt, ...numbers } = Object.fromEntries(new FormData(byId("controls")));
    return Object.fromEntries(Object.entries(numbers).map(([name, value]) => [name, Number(value) || 0]));
  },

  /** What makes this text, for the address: the fields of the form, but no slider that was not moved. */
  shared() {
    const fields = Array.from(byId("controls").elements).filter((field) => field.name);
    const moved = fields.filter(({ type, value, defaultValue }) => type !== "range" || value !== defaultValue);
    return moved.map(({ name, value }) => [name, value]);
  },

  restore(state) {
    for (const field of byId("controls").elements) {
      if (!field.name || !state.has(field.name)) continue;
      field.value = state.get(field.name);
      field.dispatchEvent(new Event("input"));
    }
  },

  press() {
    if (this.job !== undefined) this.stop();
    else if (this.checkSeed()) this.write(startIds(book.tokenizer, byId("prompt").value));
  },

  stop() {
    if (this.job !== undefined) book.ask("stop", { job: this.job });
    this.setJob(undefined);
  },

  setJob(job) {
    this.job = job;
    byId("go").textContent = job === undefined ? "Write" : "Stop";
  },

  /** Write `count` tokens after the ids; `index` is chosen at the end, or else the place before the most surprising
   * token: it needs the most explanation. Who chooses another one meanwhile keeps it. Another text ends this one. */
  async write(ids, index = undefined, count = this.options().maxNewTokens) {
    this.stop();
    const { seed, stride, ...sampling } = this.options(), began = performance.now(), run = {};
    Object.assign(this, { run, began, last: began });
    book.begin(ids, stride);
    this.begin();
    const first = index ?? ids.length - 1, shown = book.moveTo(first); // all chapters begin with the prompt
    const add = (fresh) => { if (this.run === run) this.add(fresh); };
    const job = book.ask("generate", { ids, maxNewTokens: count, seed, stride, sampling }, add);
    this.setJob(job.job);
    await job.finally(() => { if (this.run === run) this.setJob(undefined); });
    await shown;
    if (this.run !== run) return;
    clearTimeout(this.timer);
    this.draw();
    const made = book.surprises.slice(ids.length), best = made.length ? ids.length + argmax(made) - 1 : first;
    await book.moveTo(book.index === first ? index ?? best : book.index);
    byId("status").textContent = `Done: ${this.speed()}${this.promptLoss()}`;
  },

  begin() {
    this.stream = book.tokenizer.stream();
    this.spans = [];
    const unread = escapeInvisible(book.tokenizer.decode(book.text.slice(0, book.firstRead)));
    byId("text").replaceChildren(...(unread ? [html("span", { class: "note" }, unread)] : []));
    // The numbers change many times a second: a screen reader hears only that it began and ended.
    byId("status").replaceChildren("Writing. ", html("span", { id: "speed", "aria-hidden": "true" }));
    this.draw();
    byId("text").scrollTop = byId("text").scrollHeight;
  },

  /** Tokens have come. Drawing waits four times as long as it took the last time, so that it never holds up writing. */
  add({ ids, surprises }) {
    surprises.forEach((nats, i) => { book.surprises[book.text.length + i] = nats; });
    book.text.push(...ids);
    this.last = performance.now();
    this.timer ??= setTimeout(() => this.draw(), this.pause);
  },

  draw() {
    const began = performance.now(), box = byId("text"), from = book.firstRead + this.spans.length;
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    const fresh = tinted(book.text.slice(from), book.surprises.slice(from), this.stream);
    fresh.forEach((span, i) => {
      span.dataset.index = from + i;
      span.classList.toggle("given", from + i < book.given);
    });
    this.spans.push(...fresh);
    box.append(...fresh);
    if (atEnd) box.scrollTop = box.scrollHeight;
    if (byId("speed")) byId("speed").textContent = this.speed();
    this.timer = undefined;
    this.pause = Math.max(33, 4 * (performance.now() - began));
  },

  speed() {
    const count = book.text.length - book.given, seconds = (this.last - this.began) / 1000;
    return `${count} tokens, ${Math.round(count / Math.max(seconds, 1e-3)).toLocaleString("en")} tokens/s`;
  },

  /** How surprising the prompt was to the model, the loss of a person's text; and how much of it was read. */
  promptLoss() {
    const { given, firstRead: first } = book, known = book.surprises.slice(first + 1, given);
    if (!known.length) return "";
    const letters = Array.from(book.tokenizer.decode(book.text.slice(first + 1, given))).length;
    const loss = known.reduce((sum, nats) => sum + nats, 0) / Math.max(1, letters);
    const unread = first ? `. Of your ${given} tokens the model read the last ${given - first}` : "";
    return `. Your text: ${loss.toFixed(2)} nats a character${unread}`;
  },

  /** The prompt's tints are known once it has been read. */
  window() {
    this.spans.slice(0, book.given - book.firstRead).forEach((span, i) => {
      span.classList.add(surpriseClass(book.surprises[book.firstRead + i]) || "s0");
    });
  },

  /** What comes after the chosen token: before and after each filter. */
  token() {
    const { index, text, here, after } = book, nats = book.surprises[index];
    if (!here) return;
    byId("text").querySelector(".chosen")?.classList.remove("chosen");
    this.spans[index - book.firstRead]?.classList.add("chosen");
    const [line, why] = [byId("why-line"), byId("why")], { activeElement } = document;
    const [onLine, onTable] = [line, why].map((part) => part.contains(activeElement)); // focus stays where it was
    const back = html("button", { type: "button", class: "small", "data-index": index - 1 }, "Step back");
    const token = () => tokenCode(text[index], "chosen");
    const next = after === undefined ? [" the text ends. "] : [" came ", tokenCode(after), ". "];
    const own = nats === undefined ? [] : ["The model gave ", token(), ` itself ${percent(Math.exp(-nats))}: `,
      `${nats.toFixed(2)} nats. `, back];
    line.replaceChildren("After ", token(), ...next, ...own);
    const possible = suppress(here.logits, suppressedIds(book.tokenizer));
    const stages = filterStages(possible, new Set(text.slice(0, index + 1)), this.options());
    const names = stages.map(({ name }, n) => (n ? `after ${name}` : "the model says"));
    const shares = stages.map(({ logits }, n) => softmax(n ? logits : here.logits));
    const ids = new Set([...descending(here.logits).subarray(0, 8), ...(after === undefined ? [] : [after])]);
    why.replaceChildren(table(["Token", ...names], [...Array.from(ids, (id) => [
      [this.rival(id), id === after ? html("small", {}, "came next") : ""],
      ...shares.map((stage) => (stage[id] > 0 ? bar(stage[id]) : html("small", {}, "removed"))),
    ]), ["Tokens left", ...shares.map((stage) => stage.filter((share) => share > 0).length)]]));
    if (onLine) back.focus();
    if (onTable) why.focus({ preventScroll: true });
  },

  /** A button that continues from here with another token. */
  rival(id) {
    const { text, index, after } = book, label = `Go on from here with ${showToken(book.tokenizer, id)}`;
    const onclick = () => this.write([...text.slice(0, index + 1), id], index);
    const attributes = { type: "button", class: "rival", title: label, "aria-label": label, onclick };
    return html("button", attributes, tokenCode(id, id === after ? "really" : ""));
  },
};
book.chapters.push(writing);
