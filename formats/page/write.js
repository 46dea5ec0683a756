/* Chapter "Write": a prompt, how to sample, the text as it comes, and what could have come instead. */
"use strict";

/** The sliders: option of generate, label, minimum, maximum, step, first value, what it does. */
function sliderList({ vocab_size: V, max_seq: maxSeq }) {
  const maxK = Math.min(V, 100);
  return [
    ["maxNewTokens", "Length", 0, 5000, 50, 200, "tokens to add; 0: only read the prompt"],
    ["temperature", "Temperature", 0, 2, 0.05, 0.8, "0: always the likeliest; above 1: wilder"],
    ["topK", "Top-k", 0, maxK, 1, 0, "only the k likeliest; 0: all"],
    ["topP", "Top-p", 0.05, 1, 0.05, 1, "the fewest tokens that reach this total; 1: all"],
    ["minP", "Min-p", 0, 0.5, 0.01, 0, "drop tokens below this share of the top one; 0: all"],
    ["repetitionPenalty", "Repetition penalty", 1, 2, 0.05, 1, "above 1: tokens of the text become less likely"],
    ["stride", "Stride", 1, maxSeq, 1, Math.max(1, Math.floor(maxSeq / 2)), "tokens dropped when the window is full"],
  ];
}

const writing = {
  id: "write", text: [], surprises: [], spans: [], given: 0, first: 0, pause: 0,

  setup() {
    byId("controls").addEventListener("submit", (event) => {
      event.preventDefault();
      this.press();
    });
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.press();
    });
    byId("dice").addEventListener("click", () => { byId("seed").value = Math.floor(Math.random() * 2 ** 31); });
    byId("seed").addEventListener("input", () => this.checkSeed());
    byId("prompt").addEventListener("input", () => this.checkPrompt());
    byId("copy").addEventListener("click", () => this.copy());
    document.addEventListener("click", ({ target }) => { // any token anywhere that has a place in the text
      const index = target.closest("[data-index]")?.dataset.index;
      if (index !== undefined) this.choose(Number(index));
    });
    const names = ["over 50%", "25 to 50%", "10 to 25%", "3 to 10%", "1 to 3%", "under 1%"];
    const swatches = names.map((name, level) => html("span", { class: `swatch s${level}`, title: name }, "\u00a0"));
    byId("legend").append(" ", ...swatches, " surprising");
  },

  /** The network's shape bounds the sliders. */
  model() {
    byId("sliders").replaceChildren();
    byId("more").replaceChildren();
    sliderList(book.config).forEach(([name, label, min, max, step, value, hint], index) => {
      const output = html("output", { for: name }, String(value));
      const range = { type: "range", min, max, step, value };
      const input = html("input", { id: name, ...range, "aria-describedby": `${name}-hint` });
      input.addEventListener("input", () => {
        output.textContent = input.value;
        this.token();
      });
      byId(index < 3 ? "sliders" : "more").append(html("div", { class: "slider" },
        html("label", { for: name }, label), output, input, html("small", { id: `${name}-hint` }, hint)));
    });
  },

  /** Say which characters of the prompt the model has never seen. */
  checkPrompt() {
    const unknown = book.tokenizer.unknown(byId("prompt").value);
    const warning = `The model has never seen ${unknown.slice(0, 8).join(" ")}: read as “unknown”.`;
    byId("prompt-note").textContent = unknown.length ? escapeInvisible(warning) : "The model continues this text.";
  },

  /** Whether the seed is one; if not, it is shown and said. */
  checkSeed() {
    const good = /^\d{1,15}$/.test(byId("seed").value.trim());
    byId("seed").setAttribute("aria-invalid", !good);
    const { precision } = page.model;
    const exact = precision === "float32" ? "" : `; in ${precision} not always the text of generate.py`;
    const advice = good ? `the same seed gives the same text${exact}` : "a whole number from 0, please";
    byId("seed-note").textContent = advice;
    if (good) return true;
    byId("seed").focus();
    return false;
  },

  /** What the form asks for. */
  options() {
    const numbers = sliderList(book.config).map(([name]) => [name, Number(byId(name).value)]);
    return { seed: Number(byId("seed").value), ...Object.fromEntries(numbers) };
  },

  /** What makes this text: for the address. */
  shared() {
    const sliders = sliderList(book.config).map(([name, , , , , first]) => [name, Number(byId(name).value), first]);
    const changed = sliders.filter(([, value, first]) => value !== first);
    return { prompt: byId("prompt").value, seed: byId("seed").value, ...Object.fromEntries(changed) };
  },

  /** Set the form from an address. */
  restore(state) {
    for (const [name] of [["prompt"], ["seed"], ...sliderList(book.config)]) {
      if (!state.has(name)) continue;
      byId(name).value = state.get(name);
      const output = document.querySelector(`output[for=${name}]`);
      if (output) output.textContent = byId(name).value;
    }
    this.checkPrompt();
  },

  /** The button: write, or stop. */
  press() {
    if (this.job !== undefined) this.stop();
    else if (this.checkSeed()) this.write(startIds(book.tokenizer, byId("prompt").value)).catch(alertUser);
  },

  stop() {
    if (this.job !== undefined) book.engine.ask("stop", { job: this.job });
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
    Object.assign(this, { text: [...ids], surprises: [], spans: [], given: ids.length, stride });
    Object.assign(this, { run, began, last: began });
    this.begin();
    const first = index ?? ids.length - 1, shown = this.show(first); // all chapters begin with the prompt
    const add = (fresh) => { if (this.run === run) this.add(fresh); };
    const job = book.ask("generate", { ids, maxNewTokens: count, seed, stride, sampling }, add);
    this.setJob(job.job);
    await job.finally(() => { if (this.run === run) this.setJob(undefined); });
    await shown;
    if (this.run !== run) return;
    clearTimeout(this.timer);
    this.draw();
    const made = this.surprises.slice(this.given), best = made.length ? this.given + argmax(made) - 1 : first;
    await this.show(book.index === first ? index ?? best : book.index);
    byId("status").textContent = `Done: ${this.speed()}${this.promptLoss()}${this.unread()}`;
  },

  /** The text, as far as it is written, in all chapters. */
  show(index) {
    const { given, stride, run } = this;
    return book.setText(this.text, { given, stride, surprises: this.surprises, index }).then(() => {
      if (this.run === run) book.surprises.slice(0, given).forEach((nats, i) => { this.surprises[i] = nats; });
    });
  },

  /** An empty text that begins with the prompt. */
  begin() {
    this.first = Math.max(0, this.given - book.config.max_seq);
    this.stream = book.tokenizer.stream();
    const unread = book.tokenizer.decode(this.text.slice(0, this.first));
    byId("text").replaceChildren(...(unread ? [html("span", { class: "unread" }, escapeInvisible(unread))] : []));
    // The numbers change many times a second: a screen reader hears only that it began and ended.
    byId("status").replaceChildren("Writing. ", html("span", { id: "speed", "aria-hidden": "true" }));
    this.draw();
    byId("text").scrollTop = byId("text").scrollHeight;
  },

  /** Tokens have come. Drawing waits four times as long as it took the last time, so that it never holds up writing. */
  add({ ids, surprises }) {
    this.text.push(...ids);
    surprises.forEach((nats, i) => { this.surprises[this.text.length - ids.length + i] = nats; });
    this.last = performance.now();
    this.timer ??= setTimeout(() => this.draw(), this.pause);
  },

  /** Draw the tokens that are not yet drawn. */
  draw() {
    const began = performance.now(), box = byId("text");
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40, fresh = document.createDocumentFragment();
    for (let i = this.first + this.spans.length; i < this.text.length; i++) {
      const text = escapeInvisible(this.stream(this.text[i])), line = text.includes("\n") ? "line" : "";
      const given = i < this.given ? "given" : "";
      const kind = `${surpriseClass(this.surprises[i])} ${line} ${given}`;
      const span = html("span", { class: kind, "data-index": i }, text);
      this.spans.push(span);
      fresh.append(span);
    }
    box.append(fresh);
    if (atEnd) box.scrollTop = box.scrollHeight;
    if (byId("speed")) byId("speed").textContent = this.speed();
    this.timer = undefined;
    this.pause = Math.max(33, 4 * (performance.now() - began));
  },

  speed() {
    const count = this.text.length - this.given, seconds = (this.last - this.began) / 1000;
    return `${count} tokens, ${Math.round(count / Math.max(seconds, 1e-3)).toLocaleString("en")} tokens/s`;
  },

  /** How surprising the prompt was to the model: the loss of a text that a person wrote. */
  promptLoss() {
    const known = this.surprises.slice(this.first, this.given).filter((nats) => nats !== undefined);
    if (!known.length) return "";
    const text = book.tokenizer.decode(this.text.slice(this.given - known.length, this.given));
    const sum = known.reduce((total, nats) => total + nats, 0);
    return `. Your text: ${(sum / Math.max(1, Array.from(text).length)).toFixed(2)} nats a character`;
  },

  unread() {
    return this.first ? `. Of your ${this.given} tokens the model read the last ${this.given - this.first}` : "";
  },

  /** Choose a token, even while the text is being written. */
  choose(index) {
    (this.job === undefined ? book.moveTo(index) : this.show(index)).catch(alertUser);
  },

  /** The prompt's tints are known once it has been read. */
  window() {
    this.spans.slice(0, this.given - this.first).forEach((span, i) => {
      span.classList.add(surpriseClass(book.surprises[this.first + i]) || "s0");
    });
  },

  /** What comes after the chosen token: before and after each filter. */
  token() {
    const { index, text, here } = book, after = text[index + 1], nats = book.surprises[index];
    if (!here) return;
    byId("text").querySelector(".chosen")?.classList.remove("chosen");
    this.spans[index - this.first]?.classList.add("chosen");
    const [line, table] = [byId("why-line"), byId("why")], { activeElement } = document;
    const [onLine, onTable] = [line, table].map((part) => part.contains(activeElement)); // focus stays where it was
    const back = html("button", { type: "button", class: "small", onclick: () => this.choose(index - 1) }, "Step back");
    const token = () => tokenCode(text[index], "chosen");
    const next = after === undefined ? [" the text ends. "] : [" came ", tokenCode(after), ". "];
    const own = nats === undefined ? [] : ["The model gave ", token(), ` itself ${percent(Math.exp(-nats))}: `,
      `${nats.toFixed(2)} nats. `, back];
    line.replaceChildren("After ", token(), ...next, ...own);
    const choice = explainChoice(here.logits, new Set(text.slice(0, index + 1)), this.options(),
      suppressedIds(book.tokenizer), after);
    table.replaceChildren(this.whyTable(choice, after));
    if (onLine) back.focus();
    if (onTable) table.focus({ preventScroll: true });
  },

  /** The candidates before and after each filter. */
  whyTable({ stages, rows, left }, after) {
    const head = html("tr", {}, html("th", { scope: "col" }, "Token"),
      ...stages.map((name) => html("th", { scope: "col" }, name === "model" ? "the model says" : `after ${name}`)));
    const body = rows.map(({ id, shares }) => html("tr", { class: id === after ? "drawn" : "" },
      html("th", { scope: "row" }, this.rival(id), id === after ? " ← came next" : ""),
      ...shares.map((share) => html("td", {}, share > 0 ? bars([share]) : html("span", { class: "out" }, "removed")))));
    const counts = html("tr", { class: "counts" }, html("th", { scope: "row" }, "Tokens left"),
      ...left.map((count) => html("td", {}, String(count))));
    return html("table", {}, html("thead", {}, head), html("tbody", {}, ...body, counts));
  },

  /** A button that continues from here with another token. */
  rival(id) {
    const { text, index } = book, label = `Go on from here with ${showToken(book.tokenizer, id)}`;
    return html("button", { type: "button", class: "rival", title: label, "aria-label": label,
      onclick: () => this.write([...text.slice(0, index + 1), id], index).catch(alertUser) }, tokenCode(id));
  },

  async copy() {
    try {
      await navigator.clipboard.writeText(book.tokenizer.decode(this.text));
      byId("status").textContent = "Copied.";
    } catch { // not allowed: select it, so that the keyboard can
      getSelection().selectAllChildren(byId("text"));
      byId("status").textContent = "The text is selected: copy it with Ctrl-C.";
    }
  },
};
book.add(writing);
