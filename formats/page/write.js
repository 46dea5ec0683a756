/* Chapter "Write": a prompt, how to sample, the text as it comes, and what could have come instead. */

/** The sliders: option of generate, label, minimum, maximum, step, first value, what it does. */
function sliderList({ vocab_size: V, max_seq: maxSeq }) {
  return [
    ["temperature", "Temperature", 0, 2, 0.05, 0.8, "0: always the likeliest; above 1: wilder"],
    ["topK", "Top-k", 0, Math.min(V, 100), 1, 0, "only the k likeliest; 0: all"],
    ["maxNewTokens", "Length", 0, 5000, 50, 200, "tokens to add; 0: only read the prompt"],
    ["topP", "Top-p", 0.05, 1, 0.05, 1, "the fewest tokens that reach this total; 1: all"],
    ["minP", "Min-p", 0, 0.5, 0.01, 0, "drop tokens below this share of the top one; 0: all"],
    ["repetitionPenalty", "Repetition penalty", 1, 2, 0.05, 1, "above 1: tokens of the text become less likely"],
    ["stride", "Stride", 1, maxSeq, 1, Math.max(1, Math.floor(maxSeq / 2)), "tokens dropped when the window is full"],
  ];
}

const writing = {
  id: "write", spans: [], pause: 0, made: {}, network: 0,

  setup() {
    byId("controls").addEventListener("submit", (event) => {
      event.preventDefault();
      byId("text").scrollIntoView({ block: "nearest" }); // on a phone it may be below the screen
      if (this.job !== undefined) this.stop();
      else if (this.checkSeed()) this.start();
    });
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && this.checkSeed()) this.start();
    });
    byId("dice").addEventListener("click", () => this.restore(new Map([["seed", Math.floor(Math.random() * 1e9)]])));
    document.addEventListener("input", ({ target: { form, id, value, maxLength } }) => {
      if (form?.id !== "controls") return;
      if (id === "seed") this.checkSeed();
      const cut = value.length === maxLength ? `No more than ${maxLength} characters fit here. ` : "";
      if (id === "prompt") byId("prompt-note").textContent = cut + unknownText(value);
      if (this.job === undefined) byId("status").textContent = "Prompt or settings have changed: press Write.";
    });
    const swatches = [0, 1, 2, 3, 4, 5].map((level) => html("span", { class: `swatch s${level}` }, "\u00a0"));
    byId("legend").append(" ", ...swatches, " surprising");
  },

  /** The network's shape bounds the sliders. What was moved stays. A prompt may be private: see keepState. */
  model() {
    const moved = new URLSearchParams(this.moved()), prompt = byId("prompt");
    this.network = book.trained ? Math.random() : 0; // after a reload, too, the page's own is the same
    const sliders = sliderList(book.config).map(([name, label, min, max, step, value, hint]) => {
      const output = html("output", { for: name }, value), range = { type: "range", min, max, step, value };
      const input = html("input", { id: name, name, form: "controls", ...range, "aria-describedby": `${name}-hint` });
      input.addEventListener("input", () => {
        output.textContent = input.value;
        this.token();
      });
      return html("div", { class: "slider" }, html("label", { for: name }, label), input, output,
        html("small", { id: `${name}-hint` }, hint));
    });
    byId("sliders").replaceChildren(...sliders.slice(0, 2));
    byId("more").replaceChildren(...sliders.slice(2));
    this.restore(moved);
    if (!book.trained || unknownText(prompt.value)) prompt.value = book.model.prompt;
    prompt.dispatchEvent(new Event("input", { bubbles: true }));
  },

  /** Whether the seed is one; if not, it is shown and said. */
  checkSeed() {
    const good = /^\d{1,15}$/.test(byId("seed").value.trim()), { precision } = book.model;
    const exact = precision === "float32" ? "" : `; in ${precision} not always the text of generate.py`;
    byId("seed").setAttribute("aria-invalid", !good);
    byId("seed-note").textContent = good ? `the same seed gives the same text${exact}` : "a whole number, 0 or more";
    if (!good) byId("seed").focus();
    return good;
  },

  options() {
    const { prompt, ...numbers } = Object.fromEntries(new FormData(byId("controls")));
    return Object.fromEntries(Object.entries(numbers).map(([name, value]) => [name, Number(value) || 0]));
  },

  /** The form's seed, and the sliders that were moved, by name. */
  moved() {
    const fields = Array.from(byId("controls").elements).filter(({ name, type, value, defaultValue }) =>
      name === "seed" || (type === "range" && value !== defaultValue));
    return Object.fromEntries(fields.map(({ name, value }) => [name, value]));
  },

  /** What makes the text that is shown, for the address. It may differ from the form, which is of the next text. */
  shared() {
    const { tokenizer, text, given, index } = book, prompt = tokenizer.decode(text.slice(0, given));
    const written = this.job === undefined && { maxNewTokens: text.length - this.from };
    return new URLSearchParams({ prompt, ...this.made, ...written, token: index + 1 });
  },

  restore(state) {
    for (const field of byId("controls").elements) {
      if (!field.name || !state.has(field.name)) continue;
      field.value = state.get(field.name);
      field.dispatchEvent(new Event("input", { bubbles: true }));
    }
  },

  /** Write after the prompt and `more` ids; without a seed only read them. from: the first that is read, if known. */
  start(more = [], changes = this.checkSeed() ? {} : { maxNewTokens: 0 }, from = NaN) {
    const ids = startIds(book.tokenizer, byId("prompt").value), first = from < ids.length ? from : undefined;
    this.prompt = String(ids);
    return this.write([...ids, ...more], { given: ids.length, first, ...changes });
  },

  /** Make another text that is shown the book's, with a token chosen. Pasted text stays out of the address for good. */
  async take(span) {
    if (span.closest("#train-sample") && !await training.opened()) return;
    const spans = Array.from(span.parentElement.children), index = spans.indexOf(span);
    const ids = spans.map(({ token }) => token);
    if (String(ids) === String(book.text)) return book.moveTo(index);
    const given = spans.filter(({ classList }) => classList.contains("given")).length || ids.length;
    this.secret ||= !guessing.excerpt && Boolean(span.closest("#guess"));
    return this.turnTo(ids, { given, first: 0, index, maxNewTokens: 0 });
  },

  /** Write after other ids (see `write`), as a step that the browser's Back undoes. The form gets their prompt. */
  turnTo(ids, how) {
    this.stop();
    history.replaceState(this.kept(), "");
    byId("taken").hidden = false;
    this.restore(new Map([["prompt", book.tokenizer.decode(ids.slice(0, how.given))]]));
    const shown = this.write(ids, how);
    history.pushState(this.kept(), ""); // of the new text
    return shown;
  },

  /** What `bringBack` needs to show this text again, as far as it is written, if the network is still the same. */
  kept() {
    const { text, given, first, stride, surprises, index } = book, { network, made, from } = this;
    const shown = [text, { given, first, stride, surprises, index }];
    return { network, shown, made, from, prompt: byId("prompt").value };
  },

  bringBack({ network, shown: [text, how], made, from, prompt }) {
    byId("taken").hidden = true;
    if (network !== this.network) return;
    this.restore(new Map([["prompt", prompt]]));
    this.write(text, { ...how, from, made, maxNewTokens: 0 });
  },

  stop() {
    if (this.job === undefined) return;
    book.ask("stop", { job: this.job });
    this.setJob(undefined);
  },

  setJob(job) {
    this.job = job;
    byId("go").textContent = job === undefined ? "Write" : "Stop";
  },

  /** Write after the ids, of which `given` are the prompt (see Book.begin); changes: of the form's options. At the end
   * `index` is chosen, or else the place before the most surprising token, unless another one was chosen meanwhile. */
  async write(ids, { given, first = Math.max(0, given - book.config.max_seq), ...how }) {
    const { surprises = [], index, from = ids.length, made, ...changes } = how;
    this.stop();
    const { seed, maxNewTokens, stride, ...sampling } = { ...this.options(), ...changes };
    const more = ids.length > given && { more: ids.slice(given).join(".") };
    Object.assign(this, { from, made: made ?? { ...this.moved(), ...changes, first, ...more } });
    book.begin(ids, given, first, stride, surprises);
    Object.assign(this, { stream: book.tokenizer.stream(), spans: [] });
    const unread = html("span", { class: "note" }, escapeInvisible(book.tokenizer.decode(ids.slice(0, first))));
    byId("text").replaceChildren(...(first ? [unread] : []));
    byId("status").textContent = "Writing.";
    this.draw();
    byId("text").scrollTop = byId("text").scrollHeight;
    const { text } = book, at = index ?? ids.length - 1, shown = book.moveTo(at); // all chapters begin with the prompt
    const add = (fresh) => { if (text === book.text) this.add(fresh); };
    const job = book.ask("generate", { ids, maxNewTokens, seed, stride, sampling, first }, add);
    this.setJob(job.job);
    await job.finally(() => { if (text === book.text) this.setJob(undefined); });
    await shown;
    if (text !== book.text) return; // another one has begun
    clearTimeout(this.timer);
    this.draw();
    const nats = book.surprises.slice(from), best = nats.length ? from + argmax(nats) - 1 : at;
    await book.moveTo(book.index === at ? index ?? best : book.index);
    byId("status").textContent = `Done: ${nats.length} tokens${this.promptLoss()}`;
  },

  /** Tokens have come. Drawing waits six times as long as the last time took, so that it does not hold up writing. */
  add({ ids, surprises }) {
    surprises.forEach((nats, i) => { book.surprises[book.text.length + i] = nats; });
    book.text.push(...ids);
    this.timer ??= setTimeout(() => this.draw(), this.pause);
  },

  draw() {
    const began = performance.now(), box = byId("text"), from = book.first + this.spans.length;
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    const fresh = tinted(book.text.slice(from), book.surprises.slice(from), this.stream, book.given - from);
    fresh.forEach((span, i) => { span.dataset.index = from + i; });
    this.spans.push(...fresh);
    box.append(...fresh);
    if (atEnd) box.scrollTop = box.scrollHeight;
    this.timer = undefined;
    const busy = performance.now() - began; // then the browser lays out and paints, which takes longer
    requestAnimationFrame((t) => setTimeout(() => { this.pause = Math.max(33, 6 * (busy + performance.now() - t)); }));
  },

  promptLoss() {
    const { given, first } = book, known = book.surprises.slice(first + 1, given).filter((nats) => nats !== undefined);
    if (known.length < Math.max(1, given - first - 1)) return ""; // some were not read
    const letters = Array.from(book.tokenizer.decode(book.text.slice(first + 1, given))).length;
    const loss = known.reduce((sum, nats) => sum + nats, 0) / Math.max(1, letters);
    const unread = first ? `. Of its ${given} tokens the model read the last ${given - first}` : "";
    return `. The prompt: ${loss.toFixed(2)} nats a character${unread}`;
  },

  /** The tints of what was there before are known once it has been read. */
  window() {
    const read = this.spans.slice(0, this.from - book.first);
    read.forEach((span, i) => span.classList.add(surpriseClass(book.surprises[book.first + i])));
  },

  token() {
    const { index, text, here, after } = book, nats = book.surprises[index];
    if (!here) return;
    byId("text").querySelector(".chosen")?.classList.remove("chosen");
    this.spans[index - book.first]?.classList.add("chosen");
    const [line, why] = [byId("why-line"), byId("why")], { activeElement } = document;
    const [onLine, onTable] = [line, why].map((part) => part.contains(activeElement)); // focus stays where it was
    const back = html("button", { type: "button", class: "small", "data-index": index - 1 }, "One token back");
    const token = () => tokenCode(text[index], "chosen");
    const next = after === undefined ? [" the text ends here. "] : [" came ", tokenCode(after), ". "];
    const own = nats === undefined ? [] : ["The probability of ", token(), ` was ${percent(Math.exp(-nats))}: `,
      `${fixed(nats)} nats. `, back];
    line.replaceChildren("After ", token(), ...next, ...own);
    const never = suppressedIds(book.tokenizer), possible = suppress(here.logits, never);
    const stages = filterStages(possible, new Set(text.slice(0, index + 1)), this.options());
    const names = stages.map(({ name }, n) => (n ? `after ${name}` : "the model says"));
    const shares = stages.map(({ logits }, n) => softmax(n ? logits : here.logits));
    const ids = new Set([...descending(here.logits).subarray(0, 8), ...(after === undefined ? [] : [after])]);
    why.replaceChildren(table(["Go on with", ...names], [...Array.from(ids, (id) => [
      [this.rival(id), id === after ? html("small", {}, "came next") : ""],
      ...shares.map((stage) => (stage[id] > 0 ? bar(stage[id])
        : html("small", {}, never.includes(id) ? "never sampled" : "removed"))),
    ]), ["Can be sampled", ...stages.map((stage) => stage.logits.filter((logit) => logit > -Infinity).length)]]));
    if (onLine) back.focus();
    if (onTable) why.focus({ preventScroll: true });
  },

  rival(id) {
    const { text, given, index, first, stride, here, after } = book, before = text.slice(0, index + 1);
    const label = `Go on from here with ${showToken(book.tokenizer, id)}`;
    const onclick = () => {
      const surprises = [...book.surprises.slice(0, index + 1), -Math.log(softmax(here.logits)[id])];
      this.turnTo([...before, id], { given: Math.min(given, before.length), first, surprises, index, stride });
    };
    const attributes = { type: "button", class: "rival", title: label, "aria-label": label, onclick };
    return html("button", attributes, tokenCode(id, id === after ? "really" : ""));
  },
};
book.chapters.push(writing);
