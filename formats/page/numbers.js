/* Chapter "Numbers": how the loss fell, what it can be compared with, the recipe, and a glossary. */
"use strict";

/** Losses to compare with: [name, class, nats per token]. */
function referenceLines({ config, origin }) {
  return [
    ["guessing blindly, ln V", "blind", Math.log(config.vocab_size)],
    ["knowing one token before (bigrams)", "bigram", origin.bigram_entropy],
    ["the corpus's floor", "floor", origin.floor],
  ].filter(([, , value]) => typeof value === "number");
}

/** Draw the curves against "step" or "train_seconds". */
function drawCurves(axis) {
  const line = (field) => page.model.curves.map((point) => [point[axis], point[field]]);
  const references = referenceLines(page.model).map(([, kind, value]) => [kind, value]);
  const unit = axis === "step" ? "steps" : "seconds of training";
  drawChart(byId("loss"), [["train", line("train_loss")], ["val", line("val_loss")]], references, unit);
}

/** Show the panel's curves, or say why there are none. */
function showCurves() {
  const { curves } = page.model, lines = referenceLines(page.model);
  if (!curves.length) {
    byId("curves").replaceChildren(html("h3", {}, "How the loss fell"),
      html("p", {}, "There was no metrics file beside the checkpoint when this page was made, so there are no curves."),
      html("p", {}, lines.map(([name, , value]) => `${name}: ${value.toFixed(3)} nats`).join("; ")));
    return;
  }
  const keys = lines.map(([name, kind, value]) => [`${name}: ${value.toFixed(3)}`, kind]);
  for (const [name, kind] of [["training", "train"], ["validation", "val"], ...keys]) {
    byId("loss-legend").append(html("span", { class: "key" }, html("span", { class: `dash ${kind}` }), name));
  }
  byId("loss-legend").append("(nats per token)");
  const names = ["steps", "seconds", "training loss", "validation loss"];
  const cells = ({ step, train_seconds: seconds, train_loss: train, val_loss: val }) =>
    [step, seconds.toFixed(1), train.toFixed(4), val.toFixed(4)];
  byId("loss-table").append(html("tr", {}, ...names.map((name) => html("th", { scope: "col" }, name))),
    ...curves.map((point) => html("tr", {}, ...cells(point).map((cell) => html("td", {}, String(cell))))));
  const draw = () => drawCurves(document.querySelector("input[name=axis]:checked").value);
  for (const input of document.querySelectorAll("input[name=axis]")) input.addEventListener("change", draw);
  new ResizeObserver(draw).observe(byId("loss"));
}

/** The paragraph about the floor, with this model's own numbers. */
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
  const digits = { maximumFractionDigits: 6 };
  const number = (value) => (typeof value !== "number" ? String(value)
    : (Number.isInteger(value) ? value : Number(value.toPrecision(5))).toLocaleString("en", digits));
  const rows = (fields) => Object.entries(fields).map(([name, value]) => [name.replaceAll("_", " "), number(value)]);
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
  softmax: "makes probabilities out of scores: exp of each, divided by their sum",
  nats: "the unit of surprise, −ln p; one nat is 1.44 bits",
  gradient: "how the loss changes if one weight grows a little; training goes the other way",
  perplexity: "exp of the loss: among how many equally likely tokens the model wavers",
};

book.add({
  id: "numbers",
  setup() {
    showCurves();
    byId("floor-text").textContent = floorText(page.model);
    byId("glossary").append(...Object.entries(GLOSSARY).map(([word, meaning]) => html("div", {},
      html("dt", {}, word), html("dd", {}, meaning))));
    byId("recipe").append(...recipeTables(page.model).map(([title, rows]) => html("div", { class: "card" },
      html("table", {}, html("caption", {}, title), ...rows.map(([name, value]) => html("tr", {},
        html("th", { scope: "row" }, name), html("td", {}, value)))))));
  },
});
