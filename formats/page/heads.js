/* Chapter "Where heads look": all attention maps, one of them large, the logit lens, and who adds to the guess. */

const MAX_VIEW = 64; // tokens on a map: more would be too small to see

function headPlace(index) {
  const { num_heads: heads } = book.config;
  return `Layer ${Math.floor(index / heads) + 1}, head ${(index % heads) + 1}`;
}

const shortPlace = (index) => headPlace(index).match(/\d+/g).join("."); // layer.head

function headHabitText(index) {
  const { name, share } = book.reading.habits[index];
  return name ? `${name}: ${percent(share)}` : "no single habit";
}

function headWeights(index) {
  const { num_heads: heads } = book.config, maps = book.reading.attention[Math.floor(index / heads)];
  return rowOf(maps, index % heads, book.ids.length ** 2);
}

/** What part of the window the maps show, {start, size}: the chosen token is in it, and it seldom moves. */
function mapView({ ids, position }) {
  const size = Math.min(MAX_VIEW, ids.length), half = MAX_VIEW / 2;
  return { start: Math.max(0, Math.min(ids.length - size, half * Math.floor(position / half) - half / 2)), size };
}

/** A button with a map and a label for each head. A column is a layer or, if there are fewer layers, a head. */
class HeadGrid {
  constructor(box, onPress) {
    Object.assign(this, { box, onPress, note: html("p", { class: "note" }, "The maps scroll sideways.") });
    box.after(this.note);
    new ResizeObserver(() => { this.note.hidden = box.scrollWidth <= box.clientWidth; }).observe(box);
  }

  build() {
    const { num_layers: layers, num_heads: heads } = book.config;
    this.box.style.setProperty("--heads", heads);
    this.box.style.setProperty("--rows", Math.min(layers, heads));
    this.box.classList.toggle("lying", layers < heads);
    this.cells = Array.from({ length: layers * heads }, (_, index) => {
      const canvas = html("canvas", { width: 1, height: 1 }), label = html("small");
      const button = html("button", { type: "button", onclick: () => this.onPress(index) }, canvas, label);
      return { canvas, button, label };
    });
    this.box.replaceChildren(...this.cells.flatMap(({ button }, index) =>
      (index % heads ? button : [html("span", { class: "grid-name" }, `layer ${index / heads + 1}`), button])));
  }

  /** Paint the maps; pressed(index) and label(index): of a button. */
  paint(pressed, label) {
    this.cells.forEach(({ canvas, button, label: text }, index) => {
      paintMap(canvas, headWeights(index), book.ids.length, mapView(book));
      button.setAttribute("aria-pressed", pressed(index));
      for (const name of ["aria-label", "title"]) button.setAttribute(name, `${headPlace(index)}: ${label(index)}`);
      text.textContent = label(index);
    });
  }
}

book.chapters.push({
  id: "heads",

  setup() {
    this.grid = new HeadGrid(byId("grid"), (index) => book.chooseHead(index));
    byId("grid").addEventListener("click", () => byId("map").closest(".card").openTab()); // on a phone
    byId("map").addEventListener("click", ({ offsetY, target }) => {
      const { start, size } = mapView(book);
      book.moveTo(book.start + start + Math.floor((offsetY / target.clientHeight) * size));
    });
  },

  model() {
    this.grid.build();
  },

  token() {
    const index = book.layer * book.config.num_heads + book.head, weights = headWeights(index);
    this.grid.paint((other) => other === index, headHabitText);
    paintMap(byId("map"), weights, book.ids.length, { ...mapView(book), chosen: book.position });
    byId("head-title").textContent = `${headPlace(index)} · ${headHabitText(index)}`;
    this.drawLooks(rowOf(weights, book.position, book.ids.length));
    this.drawLens();
    this.drawParts();
  },

  /** Where the chosen head looks from the chosen token: bars here, and lines under the tokens of the strip. */
  drawLooks(row) {
    const { position } = book, most = descending(row.subarray(0, position + 1)).subarray(0, 5);
    Array.from(byId("strip").children).forEach((chip, t) => { // a root, because small weights matter too
      chip.style.setProperty("--look", t <= position ? Math.sqrt(row[t]) : 0);
    });
    byId("looks").replaceChildren(html("p", { class: "note" }, placedToken(position), " looks most at:"),
      ...Array.from(most, (t) => barRow(placedToken(t), bar(row[t]))));
  },

  drawLens() {
    const { here: { lens, target } } = book;
    const name = (depth) => (depth === 0 ? "embeddings" : depth === lens.length - 1 ? "output" : `layer ${depth}`);
    const cell = ({ id, share }) => [nextToken(id), bar(share)];
    const columns = ["After", ...lens[0].top.map((_, rank) => `${rank + 1}.`), nextToken(target)];
    byId("lens").replaceChildren(table(columns,
      lens.map(({ top, share }, depth) => [name(depth), ...top.map(cell), percent(share)])));
  },

  drawParts() {
    const { here: { parts, target, logits } } = book, middle = mean(logits);
    const largest = Math.max(1e-9, ...parts.map(({ value }) => Math.abs(value)));
    byId("parts-title").replaceChildren("Who adds to ", nextToken(target), "?");
    byId("parts").replaceChildren(...parts.map(({ part, value }) => {
      const share = Math.abs(value) / largest / 2, [kind, start] = value < 0 ? ["bar1", 0.5 - share] : ["", 0.5];
      return barRow(part, bar(share, signed(value, 2), kind, start));
    }), html("p", { class: "note result" }, `Together ${fixed(logits[target] - middle)}: the logit less the mean.`));
  },
});
