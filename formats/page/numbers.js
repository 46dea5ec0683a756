/* Chapter "Numbers": how the loss fell, what it can be compared with, and the recipe. */

const WORDS = { // for parts of the fields' names
  __proto__: null,
  vocab: "vocabulary", max: "longest", seq: "window", embed: "row", dim: "width", num: "number of", tie: "shared",
  lr: "learning rate", warmup: "warm-up steps", ema: "averaging", cooldown: "falling rate, share of steps",
  distill: "soft targets, share of loss", init: "initial weights", dtype: "number format", val: "validation",
  train: "training", bigram: "pairs table's loss:", entropy: "training text",
};

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
    const words = (name) => name.split("_").map((word) => WORDS[word] ?? word).join(" ");
    const plain = (value) => (value === true ? "yes" : value === false ? "no" : value);
    const row = ([name, value]) => [words(name), plain(value).toLocaleString("en",
      { maximumFractionDigits: name.endsWith("seconds") ? 0 : 5, useGrouping: !name.endsWith("seed") })];
    byId("recipe").replaceChildren(...known.filter(([, all]) => Object.keys(all).length).map(([title, all]) =>
      html("div", { class: "card" }, html("h3", {}, title), table([], Object.entries(all).map(row)))));
  },
});
