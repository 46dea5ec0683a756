/* The panel "Learn": how the loss fell, what it can be compared with, and the recipe. */
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
  const { curves } = page.model, lines = referenceLines(page.model), plot = byId("loss");
  const width = 960, height = 400, left = 56, right = 16, top = 14, bottom = 46;
  const values = curves.flatMap((point) => [point.train_loss, point.val_loss]).concat(lines.map((line) => line[2]));
  const yRange = extent(values, 0.04), xRange = [0, Math.max(...curves.map((point) => point[axis]))];
  const x = scale(xRange, left, width - right), y = scale(yRange, height - bottom, top);
  plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
  plot.replaceChildren();
  for (const mark of marks(...yRange)) {
    plot.append(svg("line", { x1: left, x2: width - right, y1: y(mark), y2: y(mark), class: "rule" }),
      svg("text", { x: left - 8, y: y(mark) + 5, class: "end" }, String(mark)));
  }
  for (const mark of marks(...xRange, 6)) plot.append(svg("text", { x: x(mark), y: height - bottom + 22, class: "middle" }, mark.toLocaleString("en")));
  plot.append(svg("text", { x: (left + width) / 2, y: height - 6, class: "middle" }, axis === "step" ? "steps" : "seconds of training"));
  for (const [, kind, value] of lines) plot.append(svg("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: `line ${kind}` }));
  for (const [field, kind] of [["train_loss", "train"], ["val_loss", "val"]]) {
    const places = curves.map((point) => `${x(point[axis]).toFixed(1)},${y(point[field]).toFixed(1)}`);
    plot.append(svg("polyline", { points: places.join(" "), class: `line ${kind}` }));
    if (curves.length < 40) curves.forEach((point) => plot.append(svg("circle", { cx: x(point[axis]), cy: y(point[field]), r: 3.5, class: kind })));
  }
}

/** Show the panel's curves, or say why there are none. */
function showCurves() {
  const { curves } = page.model, lines = referenceLines(page.model);
  if (!curves.length) {
    byId("curves").replaceChildren(html("h3", {}, "How the loss fell"),
      html("p", {}, "No metrics lay beside the checkpoint when this page was made, so there are no curves."),
      html("p", {}, lines.map(([name, , value]) => `${name}: ${value.toFixed(3)} nats`).join("; ")));
    return;
  }
  const keys = [["training", "train"], ["validation", "val"], ...lines.map(([name, kind, value]) => [`${name}: ${value.toFixed(3)}`, kind])];
  byId("loss-legend").append(...keys.map(([name, kind]) => html("span", { class: "key" }, html("span", { class: `dash ${kind}` }), name)), html("span", { class: "key" }, "(nats per token)"));
  const names = ["steps", "seconds", "training loss", "validation loss"];
  const cells = (point) => [point.step, point.train_seconds.toFixed(1), point.train_loss.toFixed(4), point.val_loss.toFixed(4)];
  byId("loss-table").append(html("tr", {}, ...names.map((name) => html("th", { scope: "col" }, name))),
    ...curves.map((point) => html("tr", {}, ...cells(point).map((cell) => html("td", {}, String(cell))))));
  for (const input of document.querySelectorAll("input[name=axis]")) input.addEventListener("change", () => drawCurves(input.value));
  drawCurves("step");
}

/** The paragraph about the floor, with this model's own numbers. */
function floorText({ config, origin }) {
  const blind = `A model that knows nothing gives every one of the ${config.vocab_size} tokens the same probability: its loss is ln V = ${Math.log(config.vocab_size).toFixed(3)}.`;
  const bigram = typeof origin.bigram_entropy === "number"
    ? ` Whoever knows only the token before, and how often each follows which, comes to ${origin.bigram_entropy.toFixed(3)} on the training text.` : "";
  const own = typeof origin.val_loss === "number" ? ` This model has ${origin.val_loss.toFixed(3)} on text that it never saw.` : "";
  const floor = typeof origin.floor === "number"
    ? ` The corpus was made by a known grammar, whose entropy is ${origin.floor.toFixed(3)}: no honest model gets below that.`
    : " Below all of them lies the entropy of the language itself. Nobody knows it exactly, but no honest model gets below it.";
  return blind + bigram + own + floor;
}

/** Rows of the table: everything that is known of the model's shape and training. */
function recipeRows({ config, origin, parameters, precision }) {
  const number = (value) => (typeof value === "number" ? Number(value.toPrecision(5)).toLocaleString("en", { maximumFractionDigits: 6 }) : String(value));
  const words = (name) => name.replaceAll("_", " ");
  const { recipe = {}, ...rest } = origin;
  return [
    ["Shape"], ["parameters", number(parameters)], ...Object.entries(config).map(([name, value]) => [words(name), number(value)]),
    ["weights in this page", precision],
    ["Recipe"], ...Object.entries(recipe).map(([name, value]) => [words(name), number(value)]),
    ["Origin"], ...Object.entries(rest).map(([name, value]) => [words(name), number(value)]),
  ];
}

function showLearn() {
  showCurves();
  byId("floor-text").textContent = floorText(page.model);
  byId("recipe").append(...recipeRows(page.model).map(([name, value]) => (value === undefined
    ? html("tr", { class: "group" }, html("th", { colspan: 2, scope: "colgroup" }, name))
    : html("tr", {}, html("th", { scope: "row" }, name), html("td", {}, value)))));
}
