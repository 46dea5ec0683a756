/* Chapter "How it learned": from step 0 to the end, through the frames that the training run has kept. */

/** The attention weights (T, T) of each map of a frame, whose bytes hold the rows up to the diagonal. */
function storyMaps({ ids, heads, maps }) {
  const T = ids.length, bytes = fromBase64(maps);
  let at = 0;
  const weight = (_, i) => (i % T <= Math.floor(i / T) ? bytes[at++] / 255 : 0);
  return heads.map(() => Float32Array.from({ length: T * T }, weight));
}

function comparison(share, now, first) {
  const whole = (map) => `${Math.round(100 * share(map))}%`;
  return first && first !== now ? `${whole(now)} (at step 0: ${whole(first)})` : whole(now);
}

/** What the position map shows, and never that an order was learned which the initial weights had. */
function positionText(now, first) {
  const near = (map) => neighbourDistance(map.points) < 0.5;
  const verdict = !near(now) ? "no order is to be seen"
    : !first ? "they have an order. Was it learned, or in the initial weights? Only the story of the run could tell"
      : near(first) ? "the initial weights had this order" : "the model has learned that positions have an order";
  const share = comparison(({ points }) => neighbourDistance(points), now, first);
  return now.points[1] ? `The distance of neighbours is ${share} of that of any two positions: ${verdict}.` : "";
}

/** What the token map shows; of vowels only if the text has them. */
function tokenText(now, first, tokenizer) {
  const letters = (pattern, { ids, points }) => points.filter((_, i) => pattern.test(tokenizer.decode([ids[i]])));
  const nearness = (map) => spread(letters(/^[aeiou]$/, map)) / spread(letters(/^[a-z]$/, map));
  if (letters(/^[aeiou]$/, now).length < 5) return "Tokens that are used alike come to lie near each other.";
  const learned = first && nearness(now) < 0.8 && nearness(first) >= 0.8;
  return `The distance of two vowels is ${comparison(nearness, now, first)} of that of two small letters`
    + `${learned ? ", and nobody told the model what a vowel is" : ""}.`;
}

const learned = {
  id: "learned", at: 0, frames: [], chart: new LossChart(byId("story-loss")),

  setup() {
    byId("story-step").addEventListener("input", ({ target }) => this.show(Number(target.value)));
    makePlayer(byId("story-play"), 500, () => {
      const { length } = this.frames; // 0 without a story
      if (length) this.show((this.at + 1) % length);
      return this.at >= length - 1;
    });
  },

  model() {
    const { model, tokenizer } = book, story = model.story.filter(({ surprise }) => surprise.length);
    const shown = story.length ? story : [model.maps]; // without a story only the end
    const all = (name) => shown.flatMap((frame) => unitSized(frame[name].points));
    const kinds = [...new Set(shown[0].tokens.ids.map((id) => kindOf(tokenizer.decode([id]))))].sort();
    this.frames = story.map((frame) => ({ ...frame, weights: storyMaps(frame) }));
    this.bounds = { tokens: all("tokens"), positions: all("positions") };
    byId("learned").classList.toggle("untold", !story.length);
    byId("token-legend").replaceChildren(tokenizer.bytes ? "Tokens that begin with " : "",
      ...kinds.map((kind) => html("span", { class: `key k${kind}` }, KINDS[kind][0])));
    if (!story.length) return this.drawMaps(model.maps);
    byId("story-step").max = story.length - 1;
    return this.show(story.length - 1);
  },

  show(at) {
    this.at = at;
    const frame = this.frames[at], { step, ids, surprise, heads, weights, sample } = frame;
    byId("story-step").value = at;
    byId("story-step").setAttribute("aria-valuetext", `step ${step}`);
    const validation = frame.val_loss === null ? "" : `; validation loss ${frame.val_loss.toFixed(3)}`;
    byId("story-line").textContent = `Step ${step}: loss of these ${ids.length} tokens `
      + `${mean(surprise).toFixed(3)} nats${validation}`;
    byId("story-text").replaceChildren(...tinted(ids, [undefined, ...surprise]));
    const written = book.tokenizer.encode(sample), { sample_surprise: nats } = frame;
    byId("story-sample").replaceChildren(...tinted(written, written.length === nats.length ? nats : []));
    byId("story-maps").replaceChildren(...heads.map(([layer, head], index) => {
      const label = `layer ${layer + 1}, head ${head + 1}`;
      const canvas = html("canvas", { role: "img", "aria-label": label });
      paintMap(canvas, weights[index], ids.length);
      return html("div", { title: label }, canvas, html("small", {}, `${layer + 1}.${head + 1}`));
    }));
    const evaluated = this.frames.filter(({ val_loss: loss }) => loss !== null);
    this.chart.show([["val", "validation", evaluated.map((one) => [one.step, one.val_loss])],
      ["train", "these tokens", this.frames.map((one) => [one.step, mean(one.surprise)])]], [], step);
    this.drawMaps(frame);
  },

  drawMaps({ tokens, positions }) {
    const [first] = this.frames, { max_seq: maxSeq, vocab_size: V, embed_dim: C } = book.config;
    drawTokenMap(byId("token-map"), tokens, book.tokenizer, this.bounds.tokens);
    drawPositionMap(byId("position-map"), positions, maxSeq, this.bounds.positions);
    const some = tokens.ids.length < V - 2 ? ` Shown are the first ${tokens.ids.length} readable tokens.` : "";
    const axes = ({ shares: [x, y] }) =>
      `A flat picture of ${C} numbers each: it shows ${percent(x + y)} of how they differ (principal components).`;
    byId("token-note").textContent = `${tokenText(tokens, first?.tokens, book.tokenizer)} ${axes(tokens)}${some}`;
    byId("position-note").textContent = `${positionText(positions, first?.positions)} ${axes(positions)}`;
  },
};
book.chapters.push(learned);
