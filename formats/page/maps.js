/* Maps of the embeddings: points on the two axes along which they differ most (computed when the page was made). */
"use strict";

const KINDS = [
  ["vowels", /^ ?[aeiou]/],
  ["other small letters", /^ ?\p{Ll}/u],
  ["capital vowels", /^ ?[AEIOU]/],
  ["other capitals", /^ ?\p{Lu}/u],
  ["digits", /^ ?\p{N}/u],
  ["the rest", /^/],
];

/** Which of KINDS a token is. */
function kindOf(text) {
  return KINDS.findIndex(([, pattern]) => pattern.test(text));
}

/** Functions from a point to its coordinates in a plot. */
function scales(points, width, height, margin) {
  const [xs, ys] = [0, 1].map((axis) => extent(points.map((point) => point[axis]), 0.03));
  return [scale(xs, margin, width - margin), scale(ys, height - margin, margin)];
}

/** How much of the embeddings' differences the two axes show. */
function describeShares(shares) {
  return `The two axes show ${percent(shares[0] + shares[1])} of the variance (principal components).`;
}

function drawTokenMap({ ids, points, shares }) {
  const plot = byId("token-map"), [x, y] = scales(points, 600, 600, 24);
  plot.setAttribute("viewBox", "0 0 600 600");
  plot.replaceChildren();
  points.forEach((point, index) => {
    const id = ids[index];
    const kind = kindOf(book.tokenizer.decode([id]));
    const label = showToken(book.tokenizer, id).slice(0, 12);
    plot.append(svg("text", { x: x(point[0]), y: y(point[1]), class: `k${kind}` }, label));
  });
  const kinds = new Set(ids.map((id) => kindOf(book.tokenizer.decode([id]))));
  const names = [...kinds].sort().map((kind) => html("span", { class: `key k${kind}` }, KINDS[kind][0]));
  byId("token-legend").replaceChildren(...names);
  const all = ids.length >= page.model.config.vocab_size - 2;
  const some = all ? "" : ` Shown are the first ${ids.length} readable tokens.`;
  byId("token-note").textContent = "Tokens that are used in a similar way lie near each other: nobody told the model "
    + "what a vowel is. " + describeShares(shares) + some;
}

function drawPositionMap({ points, shares }) {
  const plot = byId("position-map"), [x, y] = scales(points, 600, 600, 24);
  plot.setAttribute("viewBox", "0 0 600 600");
  plot.replaceChildren();
  const corners = points.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`);
  plot.append(svg("polyline", { points: corners.join(" "), class: "path" }));
  const every = Math.max(1, Math.round(points.length / 8)), { max_seq: maxSeq } = page.model.config;
  const stride = Math.ceil(maxSeq / points.length);
  points.forEach((point, index) => {
    const shade = Math.floor((index / points.length) * 6);
    plot.append(svg("circle", { cx: x(point[0]), cy: y(point[1]), r: index % every ? 4 : 7, class: `p${shade}` }));
    if (index % every) return;
    plot.append(svg("text", { x: x(point[0]) + 10, y: y(point[1]) - 8, class: "k5" }, String(index * stride + 1)));
  });
  const swatches = [0, 1, 2, 3, 4, 5].map((shade) => html("span", { class: `swatch p${shade}` }, "\u00a0"));
  byId("position-legend").replaceChildren("position 1 ", ...swatches, ` position ${maxSeq}`);
  byId("position-note").textContent = `Each of the ${maxSeq} positions in the window has a learned vector. `
    + "Where neighbours lie side by side, the model has learned that positions have an order. "
    + describeShares(shares);
}
