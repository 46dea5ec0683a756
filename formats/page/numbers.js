/* Chapter "Numbers": how the loss fell, what it can be compared with, and the recipe. */

book.chapters.push({
  id: "numbers", chart: new LossChart(byId("loss")),

  model() {
    const { curves, config, origin: { recipe = {}, ...origin }, parameters, precision } = book.model;
    const line = (field) => curves.map((point) => [point.step, point[field]]);
    const references = [ // what the curves can be compared with
      ["blind", "guessing blindly, ln V", Math.log(config.vocab_size)],
      ["bigram", "a table of pairs (bigrams), on the training text", origin.bigram_entropy],
      ["bigram", "a table of pairs (bigrams), on held-out text", origin.bigram_held_out],
      ["floor", "the corpus's floor", origin.floor],
    ].filter(([, , loss]) => typeof loss === "number");
    this.chart.show([["train", "training", line("train_loss")], ["val", "validation", line("val_loss")]], references);
    const shape = { parameters, ...config, "weights in this page": precision };
    const known = Object.entries({ Shape: shape, Recipe: recipe, Origin: origin });
    const row = ([name, value]) => [name.replaceAll("_", " "), value.toLocaleString("en",
      { maximumFractionDigits: name.endsWith("seconds") ? 0 : 5, useGrouping: !name.endsWith("seed") })];
    byId("recipe").replaceChildren(...known.filter(([, all]) => Object.keys(all).length).map(([title, all]) =>
      html("div", { class: "card" }, html("h3", {}, title), table([], Object.entries(all).map(row)))));
  },
});
