/* Chapter "Where heads look": all attention maps, one of them large, the logit lens, and who adds to the guess. */
"use strict";

const MAX_VIEW = 64; // tokens on a map: more would be too small to see

/** The name of a head: its place, or what it is in the habit of looking at. */
function headPlace(index) {
  const { num_heads: heads } = book.config;
  return `Layer ${Math.floor(index / heads) + 1}, head ${(index % heads) + 1}`;
}

function headHabitText(index) {
  const { name, share } = book.reading.habits[index] ?? {};
  return name ? `${name}: ${percent(share)}` : "no single habit";
}

/** The attention weights (T, T) of a head in the window. */
function headWeights(index) {
  const { num_heads: heads } = book.config, maps = book.reading.attention[Math.floor(index / heads)];
  return rowOf(maps, index % heads, book.ids.length ** 2);
}

/** A grid of buttons, one for each head, with its map and a label. A column is a layer, or, if there are fewer layers
 * than heads, a head. */
class HeadGrid {
  constructor(box, onPress) {
    Object.assign(this, { box, onPress, cells: [], note: html("p", { class: "note" }, "The maps scroll sideways.") });
    box.after(this.note);
  }

  /** New buttons for the network's heads. */
  build() {
    const { num_layers: layers, num_heads: heads } = book.config;
    this.box.style.setProperty("--heads", heads);
    this.box.classList.toggle("lying", layers < heads);
    this.cells = Array.from({ length: layers * heads }, (_, index) => {
      const canvas = html("canvas", { width: 1, height: 1 }), label = html("small", {});
      const button = html("button", { type: "button", onclick: () => this.onPress(index) }, canvas, label);
      return { canvas, button, label };
    });
    this.box.replaceChildren(...this.cells.flatMap(({ button }, index) => [
      ...(index % heads ? [] : [html("span", { class: "grid-name" }, `layer ${index / heads + 1}`)]), button]));
  }

  /** Paint the maps; pressed(index) and label(index): of a button. */
  paint(pressed, label) {
    this.cells.forEach(({ canvas, button, label: text }, index) => {
      paintMap(canvas, headWeights(index), book.ids.length, view);
      button.setAttribute("aria-pressed", pressed(index));
      button.setAttribute("aria-label", `${headPlace(index)}: ${label(index)}`);
      text.textContent = label(index);
    });
    this.note.hidden = this.box.scrollWidth <= this.box.clientWidth;
  }
}

/** What part of the window the maps show: at most MAX_VIEW tokens. It moves when the chosen token is not in it. */
const view = {
  start: 0, size: 0,

  follow({ ids, position }) {
    const size = Math.min(MAX_VIEW, ids.length), last = ids.length - size;
    const inside = position >= this.start && position < this.start + size && this.start <= last;
    const start = inside ? this.start : Math.max(0, Math.min(last, position - Math.floor(0.75 * size)));
    Object.assign(this, { start, size });
  },
};

const headsChapter = {
  id: "heads",

  setup() {
    this.grid = new HeadGrid(byId("grid"), (index) => {
      const { num_heads: heads } = book.config;
      book.chooseHead(Math.floor(index / heads), index % heads).catch(alertUser);
    });
    byId("map").addEventListener("pointermove", (event) => this.point(event));
    byId("map").addEventListener("click", (event) => {
      book.moveTo(book.start + this.cell(event).row).catch(alertUser);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  },

  model() {
    this.grid.build();
  },

  token() {
    view.follow(book);
    this.draw();
    this.drawLooks();
    this.drawLens();
    this.drawParts();
  },

  get index() {
    return book.layer * book.config.num_heads + book.head;
  },

  draw() {
    if (!view.size) return;
    this.grid.paint((index) => index === this.index, headHabitText);
    paintMap(byId("map"), headWeights(this.index), book.ids.length, { ...view, chosen: book.position });
    byId("head-title").textContent = `${headPlace(this.index)}: ${headHabitText(this.index)}`;
  },

  /** Where the chosen head looks from the chosen token: bars here, and lines under the tokens of the strip. */
  drawLooks() {
    const { position, ids } = book, row = Array.from(rowOf(headWeights(this.index), position, ids.length));
    Array.from(byId("strip").children).forEach((chip, t) => { // a root, because small weights matter too
      chip.style.setProperty("--look", t <= position ? Math.sqrt(row[t]) : 0);
    });
    const order = row.map((_, t) => t).slice(0, position + 1).sort((a, b) => row[b] - row[a]).slice(0, 5);
    byId("looks").replaceChildren(html("p", { class: "note" }, placedToken(position), " looks most at:"),
      ...order.map((t) => barRow([placedToken(t)], [row[t]])));
  },

  /** The row and column of the window under a pointer. */
  cell(event) {
    const box = byId("map").getBoundingClientRect();
    const along = (offset, length) =>
      view.start + Math.max(0, Math.min(view.size - 1, Math.floor((offset / length) * view.size)));
    return { row: along(event.clientY - box.top, box.height), column: along(event.clientX - box.left, box.width) };
  },

  point(event) {
    if (!view.size) return;
    const { row, column } = this.cell(event), share = headWeights(this.index)[row * book.ids.length + column];
    byId("readout").replaceChildren(placedToken(row), " looks at ", placedToken(column), ": ",
      html("b", {}, column > row ? "hidden by the mask" : percent(share)));
  },

  drawLens() {
    const { here: { lens, target } } = book;
    const cell = ({ id, share }) => html("td", { class: id === target ? "drawn" : "" }, tokenCode(id), bars([share]));
    const name = (depth) => (depth === 0 ? "embeddings" : depth === lens.length - 1 ? "output" : `layer ${depth}`);
    const rows = lens.map(({ top, share }, depth) => html("tr", {}, html("th", { scope: "row" }, name(depth)),
      ...top.map(cell), html("td", { class: "number" }, percent(share))));
    const ranks = lens[0].top.map((_, rank) => html("th", { scope: "col" }, `${rank + 1}.`));
    const head = html("tr", {}, html("th", { scope: "col" }, "After"), ...ranks,
      html("th", { scope: "col", class: "number" }, tokenCode(target, "really")));
    byId("lens").replaceChildren(html("table", {}, html("thead", {}, head), html("tbody", {}, ...rows)));
  },

  /** What each part adds to the logit of the next token: bars to both sides. */
  drawParts() {
    const { here: { parts, target } } = book, total = parts.reduce((sum, { value }) => sum + value, 0);
    byId("parts-title").replaceChildren("Who adds to ", tokenCode(target, "really"), "?");
    const largest = parts.reduce((most, { value }) => Math.max(most, Math.abs(value)), 1e-9);
    const name = (part, layer) => (["attention", "MLP"].includes(part) ? `${part} ${layer + 1}` : part);
    byId("parts").replaceChildren(...parts.map(({ part, layer, value }) => html("div", { class: "bar-row" },
      html("span", { class: "bar-name" }, name(part, layer)), signedBar(value, largest))),
    html("p", { class: "note" }, `Together ${total.toFixed(2)}.`));
  },
};
book.add(headsChapter);
