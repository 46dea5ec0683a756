/* Chapter "Numbers": how the loss fell, what it can be compared with, and the recipe. */

function floorText({ config: { vocab_size: V }, origin: { bigram_entropy: bigram, val_loss: loss, floor } }) {
  const known = (value, text) => (typeof value === "number" ? text(value.toFixed(3)) : "");
  return `A model that knows nothing gives every one of the ${V} tokens the same probability: its loss is ln V = `
    + `${Math.log(V).toFixed(3)}.${known(bigram, (nats) => " A model that knows only the previous token, and how often "
      + `each token follows it, has ${nats} on the training text.`)}`
    + known(loss, (nats) => ` This model has ${nats} on text that it never saw.`)
    + (known(floor, (nats) => ` The corpus was made by a known grammar, whose entropy is ${nats}: `)
      || " Below all of them lies the entropy of the language itself. Nobody knows it exactly, but ")
    + "no model can go below it unless it has seen the answers.";
}

/** What is known of the model's shape and training, as tables. */
function recipeTables({ config, origin: { recipe = {}, ...origin }, parameters, precision }) {
  const row = ([name, value]) => [name.replaceAll("_", " "), value.toLocaleString("en",
    { maximumFractionDigits: name.endsWith("seconds") ? 0 : 5, useGrouping: !name.endsWith("seed") })];
  const shape = { parameters, ...config, "weights in this page": precision };
  return Object.entries({ Shape: shape, Recipe: recipe, Origin: origin }).filter(([, all]) => Object.keys(all).length)
    .map(([title, all]) =>
      html("div", { class: "card" }, html("h3", {}, title), table([], Object.entries(all).map(row))));
}

book.chapters.push({
  id: "numbers",

  setup() {
    this.chart = new LossChart(byId("loss"));
  },

  model() {
    const { curves, config, origin } = book.model, line = (field) => curves.map((point) => [point.step, point[field]]);
    const references = [ // what the curves can be compared with
      ["blind", "guessing blindly, ln V", Math.log(config.vocab_size)],
      ["bigram", "a table of pairs (bigrams), on the training text", origin.bigram_entropy],
      ["bigram", "a table of pairs (bigrams), on held-out text", origin.bigram_held_out],
      ["floor", "the corpus's floor", origin.floor],
    ].filter(([, , loss]) => typeof loss === "number");
    this.chart.show([["train", "training", line("train_loss")], ["val", "validation", line("val_loss")]], references);
    byId("floor-text").textContent = floorText(book.model);
    byId("recipe").replaceChildren(...recipeTables(book.model));
  },
});
