/* Maps of the embeddings: points on the two axes along which they differ most, computed in Python. */
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

/** Functions from a point to its coordinates in a square plot that holds all of `points`. */
function squareScales(points) {
  const [xs, ys] = [0, 1].map((axis) => extent(points.map((point) => point[axis]), 0.03));
  return [scale(xs, 24, 576), scale(ys, 576, 24)];
}

/** The mean distance of two of the points. */
function spread(points) {
  let sum = 0;
  for (let i = 0; i < points.length; i++) for (let j = 0; j < i; j++) sum += distance(points[i], points[j]);
  return sum / (points.length * (points.length - 1) / 2) || 1;
}

function distance([a, b], [c, d]) {
  return Math.hypot(a - c, b - d);
}

/** How far neighbours lie apart, where 1 is as far as any two points. */
function neighbourDistance(points) {
  const steps = points.slice(1).map((point, i) => distance(point, points[i]));
  return steps.reduce((sum, step) => sum + step, 0) / steps.length / spread(points);
}

/** Points made so large that their spread is 1: a map grows in training, and its shape is what matters. */
function unitSized(points) {
  const size = spread(points);
  return points.map((point) => point.map((value) => value / size));
}

/** How much of the embeddings' differences the two axes show. */
function describeShares([first, second]) {
  return `The two axes show ${percent(first + second)} of the variance (principal components).`;
}

/** Draw tokens where their embeddings lie; frame: points that the plot has to hold. */
function drawTokenMap(plot, { ids, points }, tokenizer, frame) {
  const [x, y] = squareScales(frame);
  plot.setAttribute("viewBox", "0 0 600 600");
  plot.replaceChildren(...unitSized(points).map((point, index) => {
    const kind = kindOf(tokenizer.decode([ids[index]])), label = showToken(tokenizer, ids[index]).slice(0, 12);
    return svg("text", { x: x(point[0]), y: y(point[1]), class: `k${kind}` }, label);
  }));
}

/** Draw positions of a window of maxSeq as a path. */
function drawPositionMap(plot, { points }, maxSeq, frame) {
  const [x, y] = squareScales(frame), places = unitSized(points).map((point) => [x(point[0]), y(point[1])]);
  const every = Math.max(1, Math.round(points.length / 8)), stride = Math.ceil(maxSeq / points.length);
  plot.setAttribute("viewBox", "0 0 600 600");
  const corners = places.map((place) => place.map(Math.round)).join(" ");
  plot.replaceChildren(svg("polyline", { points: corners, class: "path" }));
  places.forEach(([cx, cy], index) => {
    const shade = Math.floor((index / points.length) * 6);
    plot.append(svg("circle", { cx, cy, r: index % every ? 4 : 7, class: `p${shade}` }));
    if (index % every) return;
    plot.append(svg("text", { x: cx + 10, y: cy - 8, class: "k5" }, String(index * stride + 1)));
  });
}
