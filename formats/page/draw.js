/* Small helpers that draw: elements, bars, maps and scales. Text is always inserted as text, never as HTML. */
"use strict";

/** The element of the page with this id. */
function byId(id) {
  return document.getElementById(id);
}

/** Give an element attributes and children. A child that is not an element becomes text. */
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** A new HTML element. */
function html(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** A new SVG element. */
function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

/** A share as a percentage: 12.3%. */
function percent(share) {
  if (share === 0) return "0";
  return share < 0.001 ? "<0.1%" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;
}

/** A bar for each share (0 to 1), one over the other, with numbers. */
function bars(shares, className = "") {
  const lines = shares.map((share, index) => {
    const bar = html("span", { class: `bar bar${index}` });
    bar.style.width = `${100 * share}%`;
    const track = html("span", { class: "track" }, bar), number = html("span", { class: "number" }, percent(share));
    return html("span", { class: "bar-line" }, track, number);
  });
  return html("span", { class: `bar-box ${className}` }, ...lines);
}

/** A token as it stands in tables. */
function tokenCode(id, className = "") {
  return html("code", { class: `tok ${className}` }, showToken(book.tokenizer, id));
}

/** How surprising a token was, as a class of the style sheet: s0 (expected) to s5, by its probability. */
function surpriseClass(nats) {
  const bounds = [0.5, 0.25, 0.1, 0.03, 0.01].map((probability) => -Math.log(probability));
  return nats === undefined ? "" : `s${bounds.filter((bound) => nats > bound).length}`;
}

/** A line of a bar chart: a token or a name, and a bar for each share. */
function barRow(name, shares) {
  return html("div", { class: "bar-row" }, html("span", { class: "bar-name" }, ...name), bars(shares));
}

/** A bar for an amount, up to `largest`, with the number. */
function amountBar(value, largest) {
  const bar = bars([Math.min(1, value / largest)]);
  bar.querySelector(".number").textContent = value.toFixed(2);
  return bar;
}

/** A number with its sign. */
function signed(value) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;
}

/** A bar to the right for a positive value, to the left for a negative one, with the number. */
function signedBar(value, largest) {
  const bar = html("span", { class: `bar ${value < 0 ? "bar1" : ""}` }), share = (50 * Math.abs(value)) / largest;
  bar.style.width = `${share}%`;
  bar.style.marginLeft = `${value < 0 ? 50 - share : 50}%`;
  return html("span", { class: "bar-line" }, html("span", { class: "track" }, bar),
    html("span", { class: "number" }, signed(value).slice(0, -1)));
}

/** A vector as bars: up and blue above zero, down and brown below. */
function vectorBars(vector) {
  const height = 31, middle = 15, label = `${vector.length} numbers`;
  const canvas = html("canvas", { class: "vector", width: vector.length, height, role: "img", "aria-label": label });
  const context = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  const largest = vector.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-9);
  vector.forEach((value, i) => {
    const length = Math.max(1, Math.round((middle * Math.abs(value)) / largest));
    context.fillStyle = style.getPropertyValue(value > 0 ? "--bar" : "--bar2");
    context.fillRect(i, value > 0 ? middle - length : middle + 1, 1, length);
  });
  return canvas;
}

/** Token t of the window with its number in the text: a click chooses it. */
function placedToken(t) {
  const index = book.start + t;
  return html("span", { class: "placed", "data-index": index },
    tokenCode(book.ids[t], t === book.position ? "chosen" : ""), ` ${index + 1}`);
}

/** The red, green and blue of a colour of the style sheet, by its name, such as "--map". */
function colour(name) {
  const value = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((start) => parseInt(value.slice(start, start + 2), 16));
}

/** Paint weights (T, T) on a canvas, a pixel each, or `size` rows and columns of them from `start` on.
 *
 * What the mask hides has a colour of its own, and one more in the row that is chosen. Small weights matter too, so a
 * shade stands for the square root of a weight.
 */
function paintMap(canvas, weights, T, { start = 0, size = T, chosen = -1 } = {}) {
  const [low, high, hidden, marked] = ["--map-low", "--map-high", "--map-hidden", "--map-row"].map(colour);
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d"), image = context.createImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    const row = start + Math.floor(i / size), column = start + (i % size), masked = row === chosen ? marked : hidden;
    const shade = Math.sqrt(weights[row * T + column]);
    for (let c = 0; c < 3; c++) {
      image.data[4 * i + c] = column > row ? masked[c] : low[c] + (high[c] - low[c]) * shade;
    }
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

/** Numbers for the marks of an axis from low to high: about `count` of them, 1, 2 or 5 times a power of ten apart. */
function marks(low, high, count = 5) {
  const rough = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((candidate) => candidate >= rough);
  const numbers = [];
  for (let n = Math.ceil(low / step); n * step <= high; n++) numbers.push(Number((n * step).toPrecision(10)));
  return numbers;
}

/** The smallest and the largest of some values, with a margin (a share of the distance). */
function extent(values, margin = 0) {
  const low = Math.min(...values), high = Math.max(...values), extra = (high - low || 1) * margin;
  return [low - extra, high + extra];
}

/** A function from [low, high] to [from, to]. */
function scale([low, high], from, to) {
  return (value) => from + ((value - low) / (high - low || 1)) * (to - from);
}
