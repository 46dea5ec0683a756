/* Chapter "Break it": maps are switches; what the model loses without some heads, in numbers and in text. */

book.chapters.push({
  id: "break", off: new Set(), ranks: new Map(), jobs: [],

  setup() {
    this.grid = new HeadGrid(byId("switches"), (index) => {
      if (!this.off.delete(index)) this.off = new Set([...this.off, index].sort((a, b) => a - b));
      this.token();
    });
    byId("all-on").addEventListener("click", () => {
      this.off.clear();
      this.token();
    });
    byId("rank").addEventListener("click", () => this.rank());
    byId("compare").addEventListener("click", () => this.compare());
  },

  model() {
    this.off.clear();
    this.grid.build();
    this.clearPair();
  },

  window() {
    this.ranks.clear(); // they are of another window
    byId("rank-state").textContent = "";
    if (this.prompt !== writing.prompt) this.clearPair(); // another was written; a click on a text keeps the two
  },

  /** The two texts go, and end if they are still being written. */
  clearPair() {
    for (const { job } of this.jobs) book.ask("stop", { job });
    Object.assign(this, { prompt: writing.prompt, jobs: [] });
    for (const name of ["text-whole", "text-broken"]) byId(name).replaceChildren();
    byId("broken-title").textContent = "without those switched off";
  },

  async token() {
    const { position: t, here, moves } = book, off = [...this.off], run = this.run = {};
    if (!here) return;
    const label = (index) => `${this.off.has(index) ? "off " : ""}${this.ranks.get(index) ?? ""}`.trim() || "on";
    this.grid.paint((index) => !this.off.has(index), label);
    const { without, lossWithout } = off.length ? await book.ask("token", { t, id: here.target, off }) : here;
    if (moves !== book.moves || run !== this.run) return;
    const [whole, broken] = [here.logits, without].map(softmax), [a, b] = [here.logits, without].map(descending);
    const pairs = Array.from(a.subarray(0, 8)).flatMap((id, rank) => [id, b[rank]]); // the likeliest of both, in turn
    const ids = [...new Set([here.target, ...pairs])].slice(0, 8).sort((one, two) => whole[two] - whole[one]);
    byId("next").replaceChildren(...ids.map((id) =>
      barRow(nextToken(id), bar(whole[id]), bar(broken[id], undefined, broken[id] < whole[id] ? "bar1" : ""))));
    const change = `; without ${off.length} of them ${lossWithout.toFixed(3)} (${signed(lossWithout - here.loss)})`;
    byId("loss-line").textContent = book.ids.length < 2 ? "A loss needs two tokens."
      : `Loss of this window: ${here.loss.toFixed(3)} nats per token with all heads${off.length ? change : "."}`;
  },

  async rank() {
    const { ids } = book, heads = this.grid.cells.length;
    const report = (text) => { byId("rank-state").textContent = text; };
    if (ids.length < 2) return report("A loss needs two tokens.");
    const ranks = await book.ask("rankHeads", {}, (done) => ids === book.ids && report(`${done} of ${heads}`));
    if (ids !== book.ids) return; // they are of another window
    for (const { layer, head, change } of ranks) this.ranks.set(layer * book.config.num_heads + head, signed(change));
    const name = ({ layer, head, change }) => `layer ${layer + 1}, head ${head + 1} (${signed(change)})`;
    report(`Most needed: ${name(ranks[0])}; least: ${name(ranks[ranks.length - 1])}, in nats.`);
    return this.token();
  },

  /** The same prompt and random numbers with all heads and without some, side by side. */
  compare() {
    const good = writing.checkSeed(), off = [...this.off];
    byId("compare-state").textContent = !good ? "The seed in chapter 2 must be a whole number, 0 or more."
      : off.length ? "" : "Switch a head off first.";
    if (!book.given || !good || !off.length) return;
    const { seed, stride, maxNewTokens, ...sampling } = writing.options(), { text, given, first } = book;
    const ids = text.slice(0, given);
    this.clearPair();
    byId("broken-title").textContent = `without (layer.head): ${off.map(shortPlace).join(", ")}`;
    const write = (box, silent) => {
      const stream = book.tokenizer.stream();
      box.replaceChildren(...tinted(ids, [], stream, given));
      return book.ask("generate", { ids, maxNewTokens: 150, seed, stride, sampling, off: silent, first },
        (fresh) => { if (jobs === this.jobs) box.append(...tinted(fresh.ids, fresh.surprises, stream)); });
    };
    const jobs = this.jobs = [write(byId("text-whole"), []), write(byId("text-broken"), off)];
  },
});
