/* Plots: curves of losses, and maps of the embeddings on the two axes along which they differ most. */

/** Numbers for the marks of an axis from low to high: about `count` of them, 1, 2 or 5 times a power of ten apart. */
function marks(low, high, count = 5) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((candidate) => candidate >= rough);
  const first = Math.ceil(low / step), length = Math.floor(high / step) - first + 1;
  return Array.from({ length }, (_, n) => Number(((first + n) * step).toPrecision(10)));
}

/** Losses against steps, with their keys in a paragraph after the plot. */
class LossChart {
  constructor(plot) {
    Object.assign(this, { plot, legend: html("p", { class: "legend" }, "\u00a0") });
    plot.after(this.legend);
    new ResizeObserver(() => this.draw()).observe(plot);
  }

  /** lines: [[class, name, [[step, loss], …]], …]. references: [[class, name, loss], …]. marker: a step. */
  show(lines, references, marker = undefined) {
    Object.assign(this, { lines: lines.filter(([, , list]) => list.length), references, marker });
    const keys = [...this.lines.map(([kind, name]) => [kind, name]),
      ...references.map(([kind, name, loss]) => [kind, `${name}: ${loss.toFixed(3)}`])];
    this.legend.replaceChildren(...keys.map(([kind, name]) =>
      html("span", { class: "key" }, html("span", { class: `dash ${kind}` }), name)), "(nats per token)");
    this.draw();
  }

  draw() {
    const { plot, lines, references, marker } = this;
    if (!lines) return;
    // As large as it is on the screen, in units of a sixteenth of a rem: letters keep their size on a narrow screen.
    const unit = parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
    const width = Math.max(150, plot.clientWidth / unit), height = Math.max(100, plot.clientHeight / unit);
    const left = 44, right = 28, top = 14, bottom = 46, points = lines.flatMap(([, , list]) => list);
    const yRange = extent([...points.map(([, loss]) => loss), ...references.map(([, , loss]) => loss)], 0.04);
    const xRange = [0, Math.max(1, ...points.map(([step]) => step))];
    const x = scale(xRange, left, width - right), y = scale(yRange, height - bottom, top);
    const rule = (x1, x2, y1, y2, kind) => html("line", { x1, x2, y1, y2, class: kind });
    const text = (anchor, atX, atY, label) =>
      html("text", { x: atX, y: atY, "text-anchor": anchor }, label.toLocaleString("en"));
    plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    plot.replaceChildren(text("middle", (left + width) / 2, height - 6, "steps"),
      ...marks(...yRange, height / 45).flatMap((mark) => [rule(left, width - right, y(mark), y(mark), "rule"),
        text("end", left - 8, y(mark) + 5, mark)]),
      ...marks(...xRange, width / 130).map((mark) => text("middle", x(mark), height - bottom + 22, mark)),
      ...references.map(([kind, , loss]) => rule(left, width - right, y(loss), y(loss), `line ${kind}`)),
      ...(marker === undefined ? [] : [rule(x(marker), x(marker), top, height - bottom, "line marker")]),
      ...lines.map(([kind, , list]) => html("polyline", { class: `line ${kind}`,
        points: [list[0], ...list].map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ") })));
  }
}

const KINDS = [
  ["vowels", /^ ?[aeiou]/],
  ["other small letters", /^ ?\p{Ll}/u],
  ["capital vowels", /^ ?[AEIOU]/],
  ["other capitals", /^ ?\p{Lu}/u],
  ["digits", /^ ?\p{N}/u],
  ["the rest", /^/],
];

const kindOf = (text) => KINDS.findIndex(([, pattern]) => pattern.test(text));
const distance = ([a, b], [c, d]) => Math.hypot(a - c, b - d);

function spread(points) {
  const sum = points.reduce((total, a) => points.reduce((part, b) => part + distance(a, b), total), 0);
  return sum / (points.length * (points.length - 1)) || 1;
}

/** How far neighbours lie apart, where 1 is as far as any two points. */
function neighbourDistance(points) {
  const steps = points.slice(1).map((point, i) => distance(point, points[i]));
  return mean(steps) / spread(points);
}

/** Points made so large that their spread is 1: a map grows in training, and its shape is what matters. */
function unitSized(points) {
  const size = spread(points);
  return points.map((point) => point.map((value) => value / size));
}

function squarePlaces(points, frame) {
  const range = (axis) => extent(frame.map((point) => point[axis]), 0.03);
  const x = scale(range(0), 24, 576), y = scale(range(1), 576, 24);
  return unitSized(points).map((point) => [x(point[0]), y(point[1])]);
}

function drawTokenMap(plot, { ids, points }, tokenizer, frame) {
  plot.replaceChildren(...squarePlaces(points, frame).map(([x, y], index) => {
    const kind = kindOf(tokenizer.decode([ids[index]])), label = showToken(tokenizer, ids[index]).slice(0, 12);
    return html("text", { x, y, class: `k${kind}` }, label);
  }));
}

function drawPositionMap(plot, { points }, maxSeq, frame) {
  const places = squarePlaces(points, frame), count = points.length;
  const every = Math.max(1, Math.round(count / 8)), stride = Math.ceil(maxSeq / count);
  const corners = places.map((place) => place.map(Math.round)).join(" ");
  plot.replaceChildren(html("polyline", { points: corners, class: "path" }));
  places.forEach(([cx, cy], index) => {
    const named = index % every === 0, opacity = 0.3 + 0.7 * (index / count);
    plot.append(html("circle", { cx, cy, r: named ? 7 : 4, class: "place", opacity }));
    if (named) plot.append(html("text", { x: cx + 10, y: cy - 8, class: "k5" }, index * stride + 1));
  });
}
