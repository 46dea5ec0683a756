/* The panel "Write": a prompt, how to sample, the text as it comes, and why each token. */
"use strict";

/** The sliders: option of generate, label, minimum, maximum, step, first value, what it does. */
function sliderList({ vocab_size: V, max_seq: maxSeq }) {
  const maxK = Math.min(V, 100);
  return [
    ["maxNewTokens", "Length", 10, 1000, 10, 300, "tokens to add"],
    ["temperature", "Temperature", 0, 2, 0.05, 0.8, "0: always the likeliest; above 1: wilder"],
    ["topK", "Top-k", 0, maxK, 1, 0, "only the k likeliest; 0: all"],
    ["topP", "Top-p", 0.05, 1, 0.05, 1, "the fewest tokens that reach this total; 1: all"],
    ["minP", "Min-p", 0, 0.5, 0.01, 0, "drop tokens below this share of the top one; 0: all"],
    ["repetitionPenalty", "Repetition penalty", 1, 2, 0.05, 1, "above 1: tokens of the text become less likely"],
    ["stride", "Stride", 1, maxSeq, 1, Math.max(1, Math.floor(maxSeq / 2)), "tokens dropped when the window is full"],
  ];
}

/** How surprising a token was, as a class of the style sheet: s0 (expected) to s5, by its probability. */
function surpriseClass(nats) {
  const bounds = [0.5, 0.25, 0.1, 0.03, 0.01].map((probability) => -Math.log(probability));
  return `s${bounds.filter((bound) => nats > bound).length}`;
}

class WritePanel {
  constructor(api, engine, onText) {
    Object.assign(this, { api, engine, onText });
    this.choices = []; // what is known of every token made
    this.spans = [];
    this.job = null;
    this.addSliders();
    this.addLegend();
    byId("controls").addEventListener("submit", (event) => {
      event.preventDefault();
      this.write();
    });
    byId("stop").addEventListener("click", () => engine.ask("stop", { job: this.job }));
    byId("dice").addEventListener("click", () => { byId("seed").value = Math.floor(Math.random() * 2 ** 31); });
    byId("token").addEventListener("input", (event) => this.choose(Number(event.target.value)));
    byId("prompt").addEventListener("input", () => this.checkPrompt());
    byId("copy").addEventListener("click", () => this.copy());
    byId("text").addEventListener("click", ({ target }) => {
      const index = this.spans.indexOf(target);
      if (index >= 0) this.choose(index);
    });
  }

  addSliders() {
    sliderList(this.api.config).forEach(([name, label, min, max, step, value, hint], index) => {
      const output = html("output", { for: name }, String(value));
      const range = { type: "range", min, max, step, value };
      const input = html("input", { id: name, ...range, "aria-describedby": `${name}-hint` });
      input.addEventListener("input", () => { output.textContent = input.value; });
      byId(index < 3 ? "sliders" : "more").append(html("div", { class: "slider" },
        html("label", { for: name }, label), output, input, html("small", { id: `${name}-hint` }, hint)));
    });
  }

  addLegend() {
    const names = ["over 50%", "25 to 50%", "10 to 25%", "3 to 10%", "1 to 3%", "under 1%"];
    const swatches = names.map((name, level) => html("span", { class: `swatch s${level}`, title: name }, "\u00a0"));
    byId("legend").append(" ", ...swatches, " surprising");
  }

  /** Say which characters of the prompt the model has never seen. */
  checkPrompt() {
    const unknown = page.tokenizer.unknown(byId("prompt").value);
    const warning = `The model has never seen ${unknown.slice(0, 8).join(" ")}: read as “unknown”.`;
    byId("prompt-note").textContent = unknown.length ? warning : "The model continues this text.";
  }

  /** What the form asks for. */
  options() {
    const numbers = sliderList(this.api.config).map(([name]) => [name, Number(byId(name).value)]);
    return { prompt: byId("prompt").value, seed: Number(byId("seed").value), ...Object.fromEntries(numbers) };
  }

  /** Write a text, token by token. */
  async write() {
    const options = this.options();
    this.start(options.prompt);
    const began = performance.now();
    const seconds = () => (performance.now() - began) / 1000;
    const speed = () => `${this.choices.length} tokens, ${Math.round(this.choices.length / seconds())} tokens/s`;
    try {
      const text = await this.api.generate(options, (fresh) => {
        this.add(fresh);
        byId("speed").textContent = speed();
      }, (job) => { this.job = job; });
      this.rest(text);
      byId("status").textContent = `Done: ${speed()}`;
    } catch (error) {
      byId("status").textContent = `That did not work: ${error.message}`;
    }
    this.running(false);
    // First the most surprising token: it needs the most explanation.
    if (this.choices.length) this.choose(argmax(this.choices.map((choice) => choice.surprise)));
    this.onText(options.prompt, this.choices.map((choice) => choice.id));
  }

  /** An empty text that begins with the prompt. */
  start(prompt) {
    this.choices = [];
    this.spans = [];
    this.stream = page.tokenizer.stream();
    byId("text").replaceChildren(html("b", {}, prompt));
    // The numbers change many times a second: a screen reader hears only that it began and ended.
    byId("status").replaceChildren("Writing. ", html("span", { id: "speed", "aria-hidden": "true" }));
    this.running(true);
  }

  running(now) {
    byId("go").disabled = now;
    byId("stop").disabled = !now;
    byId("token").disabled = now || !this.choices.length;
  }

  /** Tokens that have come. */
  add(fresh) {
    const box = byId("text"), atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    for (const choice of fresh) {
      const span = html("span", { class: surpriseClass(choice.surprise) }, this.stream(choice.id));
      this.choices.push(choice);
      this.spans.push(span);
      box.append(span);
    }
    if (atEnd) box.scrollTop = box.scrollHeight;
    byId("token").max = Math.max(0, this.choices.length - 1);
  }

  /** What is left when the last token ends within a character. */
  rest(text) {
    const shown = byId("text").textContent;
    if (text.length > shown.length) byId("text").append(text.slice(shown.length));
  }

  /** Show why a token was chosen. */
  choose(index) {
    const choice = this.choices[index], slider = byId("token");
    for (const span of this.spans) span.classList.remove("chosen");
    this.spans[index].classList.add("chosen");
    slider.value = index;
    slider.setAttribute("aria-valuetext", `${index + 1}: ${showToken(page.tokenizer, choice.id)}`);
    byId("why-line").replaceChildren(`Token ${index + 1} is `, tokenCode(choice.id),
      `. The model gave it ${percent(Math.exp(-choice.surprise))}: a surprise of ${choice.surprise.toFixed(2)} nats.`);
    byId("why").replaceChildren(this.whyTable(choice));
  }

  /** The candidates before and after each filter. */
  whyTable({ id: chosen, stages, rows, left }) {
    const head = html("tr", {}, html("th", { scope: "col" }, "Token"),
      ...stages.map((name) => html("th", { scope: "col" }, name === "model" ? "the model says" : `after ${name}`)));
    const body = rows.map(({ id, shares }) => html("tr", { class: id === chosen ? "drawn" : "" },
      html("th", { scope: "row" }, tokenCode(id), id === chosen ? " ← sampled" : ""),
      ...shares.map((share) => html("td", {}, share > 0 ? bars([share]) : html("span", { class: "out" }, "removed")))));
    const counts = html("tr", { class: "counts" }, html("th", { scope: "row" }, "Tokens left"),
      ...left.map((count) => html("td", {}, String(count))));
    return html("table", {}, html("thead", {}, head), html("tbody", {}, ...body, counts));
  }

  async copy() {
    const box = byId("text");
    try {
      await navigator.clipboard.writeText(box.textContent);
      byId("status").textContent = "Copied.";
    } catch { // not allowed: select it, so that the keyboard can
      getSelection().selectAllChildren(box);
      byId("status").textContent = "The text is selected: copy it with Ctrl-C.";
    }
  }
}
