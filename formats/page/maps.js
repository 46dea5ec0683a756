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

/** Functions from points to the places of a plot. */
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
  points.forEach((point, place) => {
    const id = ids[place];
    const kind = kindOf(page.tokenizer.decode([id]));
    const label = showToken(page.tokenizer, id).slice(0, 12);
    plot.append(svg("text", { x: x(point[0]), y: y(point[1]), class: `k${kind}` }, label));
  });
  const names = KINDS.map(([name], kind) => html("span", { class: `key k${kind}` }, name));
  byId("token-legend").append(...names);
  const some = ids.length < page.model.config.vocab_size - 2 ? ` Shown are the first ${ids.length} readable tokens.` : "";
  byId("token-note").textContent = "Tokens that are used alike come to lie near each other: nobody told the model what "
    + "a vowel is. " + describeShares(shares) + some;
}

function drawPositionMap({ points, shares }) {
  const plot = byId("position-map"), [x, y] = scales(points, 600, 600, 24);
  plot.setAttribute("viewBox", "0 0 600 600");
  const places = points.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`);
  plot.append(svg("polyline", { points: places.join(" "), class: "path" }));
  const every = Math.max(1, Math.round(points.length / 8)), stride = Math.ceil(page.model.config.max_seq / points.length);
  points.forEach((point, place) => {
    const shade = Math.floor((place / points.length) * 6);
    plot.append(svg("circle", { cx: x(point[0]), cy: y(point[1]), r: place % every ? 4 : 7, class: `p${shade}` }));
    if (place % every) return;
    plot.append(svg("text", { x: x(point[0]) + 10, y: y(point[1]) - 8, class: "k5" }, String(place * stride + 1)));
  });
  const swatches = [0, 1, 2, 3, 4, 5].map((shade) => html("span", { class: `swatch p${shade}` }, "\u00a0"));
  byId("position-legend").append("position 1 ", ...swatches, ` position ${page.model.config.max_seq}`);
  byId("position-note").textContent = `Each of the ${page.model.config.max_seq} places in the window has a learned vector. `
    + "Where neighbours lie side by side, the model has learned that places have an order. " + describeShares(shares);
}
