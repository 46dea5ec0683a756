/* Chapter "Break it": maps are switches; what the model loses without some heads, in numbers and in text. */

book.chapters.push({
  id: "break", off: new Set(), ranks: new Map(),

  setup() {
    this.grid = new HeadGrid(byId("switches"), (index) => {
      if (!this.off.delete(index)) this.off.add(index);
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
  },

  window() {
    this.ranks.clear(); // they are of another text
    byId("rank-state").textContent = "";
  },

  /** What a switch says: off, what its head costs, or nothing. */
  label(index) {
    const cost = this.ranks.has(index) ? signed(this.ranks.get(index)) : "";
    return `${this.off.has(index) ? "off " : ""}${cost}`.trim() || "on";
  },

  async token() {
    const { position: t, here } = book, off = [...this.off], run = this.run = {}, isNew = book.watch();
    this.grid.paint((index) => !this.off.has(index), (index) => this.label(index));
    const { without, lossWithout } = off.length ? await book.ask("token", { t, id: here.target, off }) : here;
    if (!isNew() || run !== this.run) return;
    const whole = softmax(here.logits), broken = softmax(without);
    byId("next").replaceChildren(...likeliest(here.logits, 8).map(({ id }) =>
      barRow(tokenCode(id, id === here.target ? "really" : ""), bar(whole[id]), bar(broken[id], undefined, "bar1"))));
    const heads = `${off.length} head${off.length > 1 ? "s" : ""}`;
    byId("loss-line").textContent = book.ids.length < 2 ? "A loss needs two tokens."
      : `Loss of this window: ${here.loss.toFixed(3)} nats per token${off.length ? `; without ${heads} `
        + `${lossWithout.toFixed(3)} (${signed(lossWithout - here.loss)})` : " with all heads."}`;
  },

  /** Leave out one head after the other: what each costs stands on its map. */
  async rank() {
    if (book.ids.length < 2) return;
    const isNew = book.watch(), heads = this.grid.cells.length;
    const say = (text) => { byId("rank-state").textContent = text; };
    const ranks = await book.ask("rankHeads", {}, (done) => say(`${done} of ${heads}`));
    if (!isNew()) return;
    for (const { layer, head, change } of ranks) this.ranks.set(layer * book.config.num_heads + head, change);
    const name = ({ layer, head, change }) => `layer ${layer + 1}, head ${head + 1} (${signed(change)})`;
    say(`Most needed: ${name(ranks[0])}; least: ${name(ranks[ranks.length - 1])}, in nats.`);
    await this.token();
  },

  /** The same prompt and random numbers with all heads and without some, side by side. */
  async compare() {
    const { seed, stride, ...sampling } = writing.options(), ids = book.text.slice(0, book.given);
    const run = this.writes = {}; // a second press ends what the first one shows
    byId("broken-title").textContent = `heads switched off: ${this.off.size}`;
    const write = (box, off) => {
      const stream = book.tokenizer.stream();
      box.replaceChildren(html("span", { class: "given" }, ids.map(stream).map(escapeInvisible)));
      return book.ask("generate", { ids, maxNewTokens: 150, seed, stride, sampling, off },
        (fresh) => { if (run === this.writes) box.append(...tinted(fresh.ids, fresh.surprises, stream)); });
    };
    await Promise.all([write(byId("text-whole"), []), write(byId("text-broken"), [...this.off])]);
  },
});
