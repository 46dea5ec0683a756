/* Chapter "Break it": maps are switches; what the model loses without some heads, in numbers and in text. */
"use strict";

const breaking = {
  id: "break", off: new Set(), ranks: new Map(),

  setup() {
    this.grid = new HeadGrid(byId("switches"), (index) => this.toggle(index));
    byId("all-on").addEventListener("click", () => {
      this.off.clear();
      this.token().catch(alertUser);
    });
    byId("rank").addEventListener("click", () => this.rank().catch(alertUser));
    byId("compare").addEventListener("click", () => this.compare().catch(alertUser));
  },

  model() {
    this.off.clear();
    this.grid.build();
  },

  window() {
    this.ranks.clear(); // they are of another text
    byId("rank-state").textContent = "";
  },

  toggle(index) {
    if (!this.off.delete(index)) this.off.add(index);
    this.token().catch(alertUser);
  },

  /** What a switch says: off, what its head costs, or nothing. */
  label(index) {
    const cost = this.ranks.get(index);
    return `${this.off.has(index) ? "off " : ""}${cost === undefined ? "" : signed(cost)}`.trim() || "on";
  },

  async token() {
    const off = [...this.off], isNew = book.watch(), { position: t, here } = book, run = this.run = {};
    view.follow(book);
    this.grid.paint((index) => !this.off.has(index), (index) => this.label(index));
    const { without } = off.length ? await book.ask("token", { t, id: here.target, off }) : here;
    const losses = book.ids.length > 1 ? await book.ask("losses", { off }) : {};
    if (!isNew() || run !== this.run) return;
    this.describe(losses);
    const whole = softmax(here.logits), broken = softmax(without);
    const row = ({ id }) => barRow([tokenCode(id, id === here.target ? "really" : "")], [whole[id], broken[id]]);
    byId("next").replaceChildren(...likeliest(here.logits, 8).map(row));
  },

  describe({ loss, lossWithout }) {
    const count = this.off.size, heads = `${count} head${count > 1 ? "s" : ""}`;
    byId("loss-line").textContent = loss === undefined ? "A loss needs two tokens."
      : `Loss of this window: ${loss.toFixed(3)} nats per token`
        + (count ? `; without ${heads} ${lossWithout.toFixed(3)} (${signed(lossWithout - loss)})` : " with all heads.");
    byId("broken-title").textContent = count ? `without ${heads}` : "without the heads switched off (none yet)";
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
    const write = (box, off) => {
      const stream = book.tokenizer.stream();
      const span = (text, kind) => html("span", { class: kind }, escapeInvisible(text));
      box.replaceChildren(span(book.tokenizer.decode(ids), "given"));
      return book.ask("generate", { ids, maxNewTokens: 150, seed, stride, sampling, off }, (fresh) => {
        box.append(...fresh.ids.map((id, i) => span(stream(id), surpriseClass(fresh.surprises[i]))));
      });
    };
    await Promise.all([write(byId("text-whole"), []), write(byId("text-broken"), [...this.off])]);
  },
};
book.add(breaking);
