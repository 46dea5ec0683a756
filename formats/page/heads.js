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

/** A grid of buttons, one for each head, with its map and a label; a column is a layer. */
class HeadGrid {
  constructor(box, onPress) {
    Object.assign(this, { box, onPress, cells: [] });
  }

  /** New buttons for the network's heads. */
  build() {
    const { num_layers: layers, num_heads: heads } = book.config;
    this.box.style.setProperty("--heads", heads);
    this.cells = Array.from({ length: layers * heads }, (_, index) => {
      const canvas = html("canvas", { width: 1, height: 1 }), label = html("small", {});
      const button = html("button", { type: "button", onclick: () => this.onPress(index) }, canvas, label);
      return { canvas, button, label };
    });
    this.box.replaceChildren(...this.cells.flatMap(({ button }, index) => [
      ...(index % heads ? [] : [html("span", { class: "grid-name" }, `layer ${index / heads + 1}`)]), button]));
  }

  /** Paint the maps of a view, (heads, size, size) for each layer; pressed(index) and label(index): of a button. */
  paint(maps, size, pressed, label) {
    this.cells.forEach(({ canvas, button, label: text }, index) => {
      const { num_heads: heads } = book.config;
      paintMap(canvas, rowOf(maps[Math.floor(index / heads)], index % heads, size ** 2), size);
      button.setAttribute("aria-pressed", pressed(index));
      button.setAttribute("aria-label", `${headPlace(index)}: ${label(index)}`);
      text.textContent = label(index);
    });
  }
}

/** What part of the window the maps show: at most MAX_VIEW tokens around the chosen one. It stays while the chosen
 * token is in it. */
const view = {
  start: 0, size: 0, maps: [], ids: [],

  async fetch() {
    const { ids, position } = book, size = Math.min(MAX_VIEW, ids.length);
    const inside = position >= this.start && position < this.start + this.size;
    if (ids === this.ids && inside) return true;
    const start = Math.max(0, Math.min(ids.length - size, position - Math.floor(0.75 * size)));
    const isNew = book.watch(), maps = await book.ask("maps", { start, size });
    if (!isNew()) return false;
    Object.assign(this, { start, size, maps, ids });
    return true;
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
      book.moveTo(book.start + view.start + this.cell(event).row).catch(alertUser);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  },

  model() {
    this.grid.build();
  },

  async token() {
    if (!await view.fetch()) return;
    this.draw();
    this.drawLooks();
    this.drawLens();
    this.drawParts();
  },

  get index() {
    return book.layer * book.config.num_heads + book.head;
  },

  draw() {
    if (!view.maps.length) return;
    this.grid.paint(view.maps, view.size, (index) => index === this.index, headHabitText);
    const weights = rowOf(view.maps[book.layer], book.head, view.size ** 2);
    paintMap(byId("map"), weights, view.size, book.position - view.start);
    byId("head-title").textContent = `${headPlace(this.index)}: ${headHabitText(this.index)}`;
  },

  /** Where the chosen head looks from the chosen token: bars here, and lines under the tokens of the strip. */
  drawLooks() {
    const { ids, position, here } = book, row = Array.from(here.looks[book.layer][book.head]);
    Array.from(byId("strip").children).forEach((chip, t) => {
      for (const name of [...chip.classList]) if (/^a\d$/.test(name)) chip.classList.remove(name);
      if (t <= position) chip.classList.add(`a${Math.ceil(Math.sqrt(row[t]) * 7)}`);
    });
    const order = row.map((_, t) => t).slice(0, position + 1).sort((a, b) => row[b] - row[a]).slice(0, 5);
    byId("looks").replaceChildren(html("p", { class: "note" }, tokenCode(ids[position], "chosen"), " looks most at:"),
      ...order.map((t) => barRow([tokenCode(ids[t]), ` ${book.start + t + 1}`], [row[t]])));
  },

  /** The cell of the map under a pointer, in the view. */
  cell(event) {
    const box = byId("map").getBoundingClientRect();
    const along = (offset, length) => Math.max(0, Math.min(view.size - 1, Math.floor((offset / length) * view.size)));
    return { row: along(event.clientY - box.top, box.height), column: along(event.clientX - box.left, box.width) };
  },

  point(event) {
    if (!view.size) return;
    const { row, column } = this.cell(event), weights = rowOf(view.maps[book.layer], book.head, view.size ** 2);
    const name = (t) => [tokenCode(view.ids[view.start + t]), ` ${book.start + view.start + t + 1}`];
    byId("readout").replaceChildren(...name(row), " looks at ", ...name(column), ": ",
      html("b", {}, column > row ? "hidden by the mask" : percent(weights[row * view.size + column])));
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
