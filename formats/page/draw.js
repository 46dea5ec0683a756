/* Small helpers that draw: elements, bars, tables, maps and scales. Text is always inserted as text, never as HTML. */

const byId = (id) => document.getElementById(id);

/** A new element with attributes, of which on… are listeners, and children: elements, texts, and lists of them. */
function html(tag, attributes = {}, ...children) {
  const isShape = ["circle", "line", "polyline", "text"].includes(tag); // of an SVG plot
  const element = document.createElementNS(`http://www.w3.org/${isShape ? "2000/svg" : "1999/xhtml"}`, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.flat());
  return element;
}

function percent(share) {
  if (share === 0) return "0";
  return share < 0.001 ? "<0.1%" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;
}

/** A number with so many digits; zero has no sign. */
function fixed(value, digits = 2) {
  const size = Math.abs(value).toFixed(digits);
  return value < 0 && Number(size) ? `−${size}` : size;
}

const signed = (value, digits = 3) => `${value.toFixed(digits) > 0 ? "+" : ""}${fixed(value, digits)}`;

/** A bar over a share (0 to 1) of its track, from `start` on, and a text beside it. */
function bar(share, text = percent(share), kind = "", start = 0) {
  const inner = html("span", { class: `bar ${kind}` });
  inner.style.width = `${100 * share}%`;
  inner.style.marginLeft = `${100 * start}%`;
  return html("span", { class: "bar-line" }, html("span", { class: "track" }, inner),
    html("span", { class: "number" }, text));
}

function barRow(name, ...bars) {
  return html("div", { class: "bar-row" }, html("span", { class: "bar-name" }, name), html("span", {}, bars));
}

/** A table: what stands over its columns, then rows of cells, the first of which names its row. */
function table(columns, rows) {
  const head = html("tr", {}, columns.map((name) => html("th", { scope: "col" }, name)));
  const body = rows.map(([name, ...cells]) => html("tr", {}, html("th", { scope: "row" }, name),
    cells.map((cell) => html("td", {}, cell))));
  return html("table", {}, html("thead", {}, head), html("tbody", {}, body));
}

const tokenCode = (id, kind = "", at = {}) =>
  html("code", { class: `tok ${kind}`, ...at }, showToken(book.tokenizer, id));

/** A token that may come next; the one that did is marked, and can be chosen. */
const nextToken = (id) => tokenCode(id, ...(id === book.after ? ["really", { "data-index": book.index + 1 }] : []));

function placedToken(t) {
  const index = book.start + t, kind = index === book.index ? "chosen" : "";
  return html("span", { "data-index": index }, tokenCode(book.ids[t], kind), ` ${index + 1}`);
}

/** Says which characters of a text the model has never seen, if there are any. Bytes are all known. */
function unknownText(text) {
  const unknown = book.tokenizer.unknown?.(text).slice(0, 40).join(" ");
  return unknown ? escapeInvisible(`The model has never seen ${unknown}: read as “unknown”.`) : "";
}

/** How surprising a token was, as a class of the style sheet: s0 (expected) to s5, by its probability; s: not known. */
function surpriseClass(nats) {
  return nats === undefined ? "s" : `s${[0.5, 0.25, 0.1, 0.03, 0.01].filter((p) => Math.exp(-nats) < p).length}`;
}

/** A text in the tints of its surprises, as far as they are known: an element for each token. given: see Book.begin. */
function tinted(ids, surprises, stream = book.tokenizer.stream(), given = 0) {
  return ids.map((token, i) => {
    const special = book.tokenizer.specialIds.includes(token) ? showToken(book.tokenizer, token) : "";
    const text = escapeInvisible(stream(token)) || special, line = text.includes("\n") ? "line" : "";
    const kind = `${surpriseClass(surprises[i])} ${line} ${i < given ? "given" : ""}`;
    return Object.assign(html("span", { class: kind }, text), { token });
  });
}

function vectorBars(vector) {
  const height = 31, middle = 15, label = `${vector.length} numbers`;
  const canvas = html("canvas", { class: "vector", width: vector.length, height, role: "img", "aria-label": label });
  const context = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  const largest = vector.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-9);
  vector.forEach((value, i) => {
    const length = Math.max(1, Math.round((middle * Math.abs(value)) / largest));
    context.fillStyle = style.getPropertyValue(value > 0 ? "--plus" : "--minus");
    context.fillRect(i, value > 0 ? middle - length : middle + 1, 1, length);
  });
  return canvas;
}

/** Paint weights (T, T) on a canvas, a pixel each, or `size` rows and columns of them from `start` on. What the mask
 * hides has its own colours. Small weights matter too, so a shade stands for the square root of a weight. */
function paintMap(canvas, weights, T, { start = 0, size = T, chosen = -1 } = {}) {
  const style = getComputedStyle(document.documentElement), context = canvas.getContext("2d");
  const [low, high, hidden, marked] = ["--map-low", "--map-high", "--map-hidden", "--map-row"].map((name) =>
    [1, 3, 5, 7].map((place) => parseInt(`${style.getPropertyValue(name).trim()}ff`.slice(place, place + 2), 16)));
  canvas.width = canvas.height = size;
  const image = context.createImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    const row = start + Math.floor(i / size), column = start + (i % size), masked = row === chosen ? marked : hidden;
    const shade = Math.sqrt(weights[row * T + column]);
    for (let c = 0; c < 4; c++) image.data[4 * i + c] = column > row ? masked[c] : low[c] + (high[c] - low[c]) * shade;
  }
  context.putImageData(image, 0, 0);
}

/** Let a button play and pause: next() every `wait` ms, until it says that this was the last step. */
function makePlayer(button, wait, next) {
  let timer;
  button.addEventListener("click", function toggle() {
    clearInterval(timer);
    button.textContent = timer ? "Play" : "Pause";
    const tick = () => { if (next()) toggle(); };
    timer = timer ? undefined : setInterval(tick, wait);
    if (timer) tick();
  });
}

/** The smallest and the largest of some values, with a margin (a share of the distance). */
function extent(values, margin) {
  const low = Math.min(...values), high = Math.max(...values), extra = (high - low || 1) * margin;
  return [low - extra, high + extra];
}

function scale([low, high], from, to) {
  return (value) => from + ((value - low) / (high - low)) * (to - from);
}
