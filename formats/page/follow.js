/* Chapter "Follow one token": its way through a layer, with the numbers that are really computed. */

const MAX_ROWS = 4; // tokens in the tables of keys and values: those that get most attention

const beginning = (vector) => `${Array.from(vector.slice(0, 4), (value) => fixed(value)).join(", ")}, …`;

const following = {
  id: "follow", step: 0, cards: [],

  setup() {
    byId("follow-back").addEventListener("click", () => this.show(this.step - 1));
    byId("follow-next").addEventListener("click", () => this.next());
    makePlayer(byId("follow-play"), 3000, () => this.next());
    new ResizeObserver(() => this.cards.length && this.show(this.step)).observe(byId("follow-steps")); // its tab opened
    byId("follow-pick").addEventListener("change", ({ target }) => book.chooseHead(Number(target.value)));
  },

  /** One step on, through all layers, and after the last the first again. Returns whether it is now the last. */
  next() {
    const { layer, head, config: { num_heads: nh, num_layers: L } } = book, last = this.cards.length - 1;
    const done = this.step === last, through = this.step === last - 1 && layer < L - 1;
    this.show(done ? 0 : through ? 2 : this.step + 1);
    if (done || through) book.chooseHead((done ? 0 : layer + 1) * nh + head);
    return this.step === last;
  },

  /** The way through the network: a box for each part on the line of the stream. A press on a layer opens it. */
  model() {
    this.layers = Array.from({ length: book.config.num_layers }, (_, layer) => {
      const onclick = () => book.chooseHead(layer * book.config.num_heads + book.head), number = layer + 1;
      return html("button", { type: "button", class: "layer", "aria-label": `Layer ${number}`, onclick },
        html("b", {}, number), html("span", {}, "attention"), html("span", {}, "MLP"));
    });
    byId("follow-way").replaceChildren(html("span", {}, "look up"), ...this.layers, html("span", {}, "score"));
  },

  window() {
    byId("follow-pick").replaceChildren(...book.reading.habits.map((_, index) => html("option", { value: index },
      `Head ${shortPlace(index)} · ${headHabitText(index)}`)));
  },

  async token() {
    const { position, layer, head, moves } = book, numbers = await book.ask("follow", { position, layer, head });
    if (moves !== book.moves) return; // another token was chosen
    byId("follow-pick").value = layer * book.config.num_heads + head;
    this.cards = this.steps(numbers).map(([title, text, picture, formula, code], step) =>
      html("li", { class: "card", onclick: () => this.show(step) }, html("h3", {}, `${step + 1}. ${title}`),
        html("p", {}, text), picture, html("p", { class: "formula" }, formula, html("br"), html("code", {}, code))));
    byId("follow-steps").replaceChildren(...this.cards);
    this.show(this.step);
  },

  /** The steps: title, text, pictures, formula, and where it stands in tiny_decoder.py. */
  steps(f) {
    const { ids, position: t, layer, here: { target } } = book, l = layer + 1, b = book.config.bias ? " + b" : "";
    const { embed_dim: C, num_heads: nh, num_layers: L, vocab_size: V } = book.config, hs = C / nh;
    const shares = softmax(f.logits), answering = f.hidden.filter((value) => value > 0.1).length;
    const most = Array.from(f.weights.keys()).sort((a, b) => f.weights[b] - f.weights[a]).slice(0, MAX_ROWS);
    const looks = (columns, cells) => table(["token", ...columns], most.map((j) => [placedToken(j), ...cells(j)]));
    const guesses = Array.from(descending(f.logits).subarray(0, MAX_ROWS));
    const next = guesses.includes(target) ? guesses : [...guesses.slice(1), target];
    const before = layer ? `Layers 1 to ${layer} have added to it; before layer ${l}` : "Before layer 1";
    return [
      ["Look the token up", [tokenCode(ids[t], "chosen"), ` is row ${ids[t]} in a table of ${V} rows. The row has `
        + `${C} numbers: ${beginning(f.token)}`], vectorBars(f.token), "x = E[id]", "token_embedding"],
      ["Add where it stands", `Row ${t} of a second table is added, for this is token ${t + 1} of the window. Else the `
        + "first layer could not tell in which order tokens stand.", vectorBars(f.place), "x = E[id] + P[t]",
      "position_embedding"],
      ["The stream", `This row of numbers is all that the token knows. ${before} it holds ${beginning(f.x)}`,
        vectorBars(f.x), "x: one row for each token", "for block in self.blocks"],
      ["Ask: the query", `Layer ${l} brings the row to mean 0 and variance 1, then scales ${b && "and shifts "}each `
        + `number (learned). This head makes ${hs} numbers of it, the query: what am I looking for?`, vectorBars(f.q),
      `q = Wq · LayerNorm(x)${b}`, "attention.project"],
      ["Compare with the keys", "Every token up to here made a key in the same way: what can I be found by? Query "
        + `times key, divided by √${hs}, is the score.`,
      looks(["key", "score"], (j) => [vectorBars(f.keys[j]), fixed(f.scores[j])]),
      `scores = q kᵀ / √${hs} + mask`, "attention.weigh"],
      ["Softmax: where to look", "e to the power of each score, divided by the sum of all: shares that add up "
        + "to 100%. Here are the largest; all are lines under the strip's tokens. The mask hides later tokens.",
      looks(["share"], (j) => [bar(f.weights[j])]), "weights = softmax(scores)", "attention.weigh"],
      ["Fetch: the values", "Every token also made a value: what do I hand over? Each value, times its share, is added "
        + "up. Only here does a token learn of others.",
      [looks(["value", "share"], (j) => [vectorBars(f.values[j]), percent(f.weights[j])]), vectorBars(f.mix)],
      "h = weights · v", "attention.weigh"],
      ["Write it back", `The ${nh > 1 ? `${nh} heads side by side go` : "head goes"} through a matrix, and the result `
        + `is added to the stream. Now it holds ${beginning(f.attended)}`, vectorBars(f.attended),
      `x = x + Wo · heads${b}`, "attention.out_proj"],
      ["Think: the MLP", `${4 * C} neurons read the row, and no other token. ${answering} of them answer above 0.1.`,
      vectorBars(f.hidden), `h = GELU(Wup · LayerNorm(x)${b})`, "mlp.up, mlp.gelu"],
      ["Write it back", `Their answers are added too. Layer ${l} of ${L} is done. The stream holds `
        + beginning(f.after), vectorBars(f.after), `x = x + Wdown · h${b}`, "mlp.down"],
      ["Score every token", `After layer ${L} the row is compared with ${V} rows, one for each token. Softmax makes `
        + "the guess out of these logits.", table(["token", "logit", "probability"], next.map((id) =>
        [nextToken(id), fixed(f.logits[id]), bar(shares[id])])),
      "p = softmax(H · LayerNorm(x))", "final_norm, head"],
    ];
  },

  /** Go to a step. The row of cards is moved by hand: scrollIntoView would move the page as well. */
  show(step) {
    this.step = Math.max(0, Math.min(this.cards.length - 1, step));
    this.cards.forEach((one, n) => one.classList.toggle("now", n === this.step));
    this.layers.forEach((box, layer) => box.setAttribute("aria-pressed", layer === book.layer));
    const [, attention, mlp] = this.layers[book.layer].children;
    const [first, last] = document.querySelectorAll("#follow-way > span");
    for (const [part, from, to] of [[first, 0, 1], [attention, 3, 7], [mlp, 8, 9], [last, 10, 10]]) {
      part.classList.toggle("now", this.step >= from && this.step <= to);
    }
    const film = byId("follow-steps"), card = this.cards[this.step];
    film.scrollLeft = card.offsetLeft - (film.clientWidth - card.clientWidth) / 2;
  },
};
book.chapters.push(following);
