/* Chapter "Numbers": how the loss fell, what it can be compared with, the recipe, and a glossary. */

/** Draw the curves; without any, show only what they would be compared with. */
function showCurves({ curves, config, origin }) {
  const references = [
    ["blind", "guessing blindly, ln V", Math.log(config.vocab_size)],
    ["bigram", "knowing one token before (bigrams)", origin.bigram_entropy],
    ["floor", "the corpus's floor", origin.floor],
  ].filter(([, , loss]) => typeof loss === "number");
  const line = (field) => curves.map((point) => [point.step, point[field]]);
  byId("no-curves").hidden = curves.length;
  new LossChart(byId("loss")).show(
    [["train", "training", line("train_loss")], ["val", "validation", line("val_loss")]], references);
}

function floorText({ config, origin }) {
  const blind = `A model that knows nothing gives every one of the ${config.vocab_size} tokens the same probability: `
    + `its loss is ln V = ${Math.log(config.vocab_size).toFixed(3)}.`;
  const bigram = typeof origin.bigram_entropy === "number"
    ? " A model that knows only the previous token, and how often each token follows it, has "
      + `${origin.bigram_entropy.toFixed(3)} on the training text.` : "";
  const own = typeof origin.val_loss === "number"
    ? ` This model has ${origin.val_loss.toFixed(3)} on text that it never saw.` : "";
  const floor = typeof origin.floor === "number"
    ? ` The corpus was made by a known grammar, whose entropy is ${origin.floor.toFixed(3)}: `
    : " Below all of them lies the entropy of the language itself. Nobody knows it exactly, but ";
  return blind + bigram + own + floor + "no model can go below it unless it has seen the answers.";
}

/** What is known of the model's shape and training, in three tables: [title, rows of two cells]. */
function recipeTables({ config, origin, parameters, precision }) {
  const rows = (fields) => Object.entries(fields).map(([name, value]) =>
    [name.replaceAll("_", " "), value.toLocaleString("en", { maximumFractionDigits: 5 })]);
  const { recipe = {}, ...rest } = origin;
  return [
    ["Shape", rows({ parameters, ...config, "weights in this page": precision })],
    ["Recipe", rows(recipe)],
    ["Origin", rows(rest)],
  ].filter(([, entries]) => entries.length);
}

const GLOSSARY = {
  token: "a piece of text, here a row in a table of V: a character, or part of a word",
  embedding: "the row of C numbers that stands for a token, or for a position; it is learned",
  residual: "the stream: what a token's row becomes, while every layer adds to it (a residual connection)",
  query: "what a token looks for, as numbers: one row for each head",
  key: "what a token can be found by; a query's product with it is the score",
  value: "what a token hands over to whoever looks at it",
  head: "one of several attentions side by side, each with its own queries, keys and values",
  logit: "the score of a token as the next one, before softmax",
  softmax: "makes probabilities out of scores: e to the power of each, divided by the sum of all",
  nats: "the unit of surprise, −ln p; one nat is 1.44 bits",
  gradient: "how the loss changes if one weight grows a little; training goes the other way",
  perplexity: "exp of the loss: as uncertain as a choice among this many equally likely tokens",
};

book.chapters.push({
  id: "numbers",

  setup() {
    showCurves(page.model);
    byId("floor-text").textContent = floorText(page.model);
    byId("glossary").append(...Object.entries(GLOSSARY).map(([word, meaning]) =>
      html("div", {}, html("dt", {}, word), html("dd", {}, meaning))));
    byId("recipe").append(...recipeTables(page.model).map(([title, rows]) =>
      html("div", { class: "card" }, html("h3", {}, title), table([], rows))));
  },
});
