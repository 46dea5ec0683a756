/* The panel "Look inside": attention maps, the logit lens, and heads that can be switched off. */
"use strict";

const MAX_TOKENS = 64; // more would make the maps unreadable

class LookPanel {
  constructor(engine, config) {
    Object.assign(this, { engine, config });
    this.ids = [];
    this.head = { layer: 0, head: 0 };
    this.off = new Set(); // layer * num_heads + head
    this.asked = 0;
    byId("position").addEventListener("input", (event) => this.moveTo(Number(event.target.value)));
    byId("map").addEventListener("pointermove", (event) => this.point(event));
    byId("map").addEventListener("click", (event) => this.moveTo(this.cell(event).row));
    this.addHeads();
    withTheme(() => this.drawMaps());
  }

  /** A small map and a switch for every head. */
  addHeads() {
    const { num_layers: layers, num_heads: heads } = this.config;
    this.canvases = [];
    byId("grid").style.setProperty("--heads", heads);
    byId("grid").append(html("span"));
    for (let head = 0; head < heads; head++) {
      byId("grid").append(html("span", { class: "grid-name" }, `head ${head + 1}`));
    }
    for (let layer = 0; layer < layers; layer++) {
      byId("grid").append(html("span", { class: "grid-name" }, `layer ${layer + 1}`));
      const line = html("span", { class: "switch-line" }, html("span", {}, `Layer ${layer + 1}`));
      for (let head = 0; head < heads; head++) {
        const canvas = html("canvas", { width: 1, height: 1 });
        byId("grid").append(html("button", { type: "button", "aria-label": `Layer ${layer + 1}, head ${head + 1}`,
          onclick: () => this.showHead(layer, head) }, canvas));
        line.append(this.makeSwitch(layer, head));
        this.canvases.push(canvas);
      }
      byId("switches").append(line);
    }
  }

  makeSwitch(layer, head) {
    const label = `Layer ${layer + 1}, head ${head + 1}`;
    const box = html("input", { type: "checkbox", checked: true, "aria-label": label });
    box.addEventListener("change", () => {
      const index = layer * this.config.num_heads + head;
      if (box.checked) this.off.delete(index);
      else this.off.add(index);
      this.refresh();
    });
    return html("label", { class: "switch" }, box, ` head ${head + 1}`);
  }

  /** Look at the end of a text. */
  show(ids) {
    this.ids = ids.slice(-Math.min(MAX_TOKENS, this.config.max_seq));
    this.position = Math.floor(0.75 * this.ids.length); // not the last one, so that the next token is known
    byId("position").max = this.ids.length - 1;
    byId("position").disabled = this.ids.length < 2;
    this.chips = this.ids.map((id, t) => html("span", { class: "chip", onclick: () => this.moveTo(t) }, tokenCode(id)));
    byId("strip").replaceChildren(...this.chips);
    return this.refresh();
  }

  /** Ask the model again: the text or the switches have changed. */
  async refresh() {
    if (this.ids.length < 2) {
      byId("position-line").textContent = "Write a longer text first: at least two tokens are needed.";
      return;
    }
    const asked = ++this.asked;
    const answer = await this.engine.ask("look", { ids: this.ids, off: [...this.off] });
    if (asked !== this.asked) return; // a later question is on its way
    Object.assign(this, answer);
    this.describeLoss();
    this.drawMaps();
    await this.moveTo(this.position);
  }

  describeLoss() {
    const change = this.lossWithout - this.loss, count = this.off.size;
    const difference = `${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(3)}`;
    const without = `without ${count} head${count > 1 ? "s" : ""} ${this.lossWithout.toFixed(3)} (${difference})`;
    byId("loss-line").textContent = `Loss of this text: ${this.loss.toFixed(3)} nats per token`
      + (count ? `; ${without}` : " with all heads.");
  }

  /** The weights (T, T) of a head. */
  weights(layer, head) {
    const size = this.ids.length ** 2;
    return this.attention[layer].subarray(head * size, (head + 1) * size);
  }

  drawMaps() {
    if (!this.attention) return;
    const { num_heads: heads } = this.config;
    this.canvases.forEach((canvas, index) => {
      const layer = Math.floor(index / heads), head = index % heads;
      paintMap(canvas, this.weights(layer, head), this.ids.length);
      canvas.parentElement.setAttribute("aria-pressed", layer === this.head.layer && head === this.head.head);
      canvas.parentElement.classList.toggle("off", this.off.has(index));
    });
    this.drawRow();
  }

  showHead(layer, head) {
    this.head = { layer, head };
    byId("head-title").textContent = `Layer ${layer + 1}, head ${head + 1}`;
    this.drawMaps();
  }

  /** Choose a position. */
  async moveTo(t) {
    if (!this.attention) return;
    this.position = Math.max(0, Math.min(this.ids.length - 1, t));
    const slider = byId("position"), token = showToken(page.tokenizer, this.ids[this.position]);
    slider.value = this.position;
    slider.setAttribute("aria-valuetext", `${this.position + 1}: ${token}`);
    const last = this.position === this.ids.length - 1;
    byId("position-line").replaceChildren(
      `Position ${this.position + 1} of ${this.ids.length}: `, tokenCode(this.ids[this.position]),
      ...(last ? [", the last one."] : [", and the text goes on with ", tokenCode(this.ids[this.position + 1]), "."]));
    this.drawRow();
    const asked = this.asked, { lens, next } = await this.engine.ask("position", { t: this.position });
    if (asked === this.asked && t === this.position) this.drawPredictions(lens, next);
  }

  /** Where the chosen head looks from the chosen position: shades on the text, and the largest numbers as bars. */
  drawRow() {
    const T = this.ids.length, weights = this.weights(this.head.layer, this.head.head);
    paintMap(byId("map"), weights, T, this.position);
    const row = Array.from(weights.subarray(this.position * T, (this.position + 1) * T));
    this.chips.forEach((chip, t) => {
      const kind = t === this.position ? "chosen" : t > this.position ? "future" : "";
      chip.className = `chip a${Math.ceil(Math.sqrt(row[t]) * 7)} ${kind}`;
      chip.title = t > this.position ? "later: hidden by the mask" : `${percent(row[t])} of the attention`;
    });
    const order = row.map((_, t) => t).slice(0, this.position + 1).sort((a, b) => row[b] - row[a]).slice(0, 6);
    const title = html("p", { class: "note" },
      tokenCode(this.ids[this.position]), ` (${this.position + 1}) looks most at:`);
    byId("looks").replaceChildren(title, ...order.map((t) => html("div", { class: "bar-row" },
      html("span", { class: "bar-name" }, tokenCode(this.ids[t]), ` ${t + 1}`), bars([row[t]]))));
  }

  /** The cell of the map under a pointer. */
  cell(event) {
    const box = byId("map").getBoundingClientRect(), T = this.ids.length;
    const along = (offset, length) => Math.max(0, Math.min(T - 1, Math.floor((offset / length) * T)));
    return { row: along(event.clientY - box.top, box.height), column: along(event.clientX - box.left, box.width) };
  }

  point(event) {
    if (!this.attention) return;
    const { row, column } = this.cell(event), T = this.ids.length;
    const share = this.weights(this.head.layer, this.head.head)[row * T + column];
    byId("readout").replaceChildren(
      tokenCode(this.ids[row]), ` (${row + 1}) looks at `, tokenCode(this.ids[column]), ` (${column + 1}): `,
      html("b", {}, column > row ? "hidden by the mask" : percent(share)));
  }

  /** The logit lens and the next-token bars at the chosen position. */
  drawPredictions(lens, next) {
    const target = this.ids[this.position + 1];
    const cell = ({ id, share }) => html("td", { class: id === target ? "drawn" : "" }, tokenCode(id), bars([share]));
    const name = (depth) => (depth === 0 ? "embeddings" : depth === lens.length - 1 ? "output" : `layer ${depth}`);
    const rows = lens.map((tokens, depth) => html("tr", {}, html("th", { scope: "row" }, name(depth)),
      ...tokens.map(cell)));
    const heads = lens[0].map((_, rank) => html("th", { scope: "col" }, `${rank + 1}.`));
    byId("lens").replaceChildren(html("table", {},
      html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "After"), ...heads)), html("tbody", {}, ...rows)));
    byId("next").replaceChildren(...next.map(({ id, share, without }) => html("div", { class: "bar-row" },
      html("span", { class: "bar-name" }, tokenCode(id, id === target ? "really" : "")), bars([share, without]))));
  }
}
