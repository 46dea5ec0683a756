/* What happens inside for one text: sampling/inspect.py, and what the chapters need beyond it. Runs in the worker. */

/** Row t of a matrix that lies in one array, row after row. */
const rowOf = (matrix, t, width) => matrix.subarray(t * width, (t + 1) * width);

const product = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** surprises: −ln p of each of the ids (T) by the logits (T, V) before it, NaN for the first; loss: their mean. */
function surprisesOf(logits, ids, vocabSize) {
  const nats = (t) => -Math.log(softmax(rowOf(logits, t - 1, vocabSize))[ids[t]]);
  const surprises = Float64Array.from(ids, (_, t) => (t ? nats(t) : NaN));
  return { surprises, loss: mean(surprises.subarray(1)) };
}

/** What a head may be in the habit of looking at: name -> whether token t looks at token j. `of` has the ids, and for
 * each token whether it is white space (blank) and the number of its word. */
const HABITS = {
  "itself": (t, j) => j === t,
  "the token before": (t, j) => j === t - 1,
  "two before": (t, j) => j === t - 2,
  "the last few": (t, j) => j > t - 5,
  "the first token": (t, j) => j === 0,
  "the same token, earlier": (t, j, of) => j < t && of.ids[j] === of.ids[t],
  "what followed the same token": (t, j, of) => j > 0 && j < t && of.ids[j - 1] === of.ids[t],
  "spaces and line ends": (t, j, of) => of.blank[j],
  "this word so far": (t, j, of) => !of.blank[j] && of.word[j] === of.word[t],
};

/** The habit of a head, found in its weights (T, T): {name, share} with the share of its attention that goes there. A
 * head without a habit spreads its attention evenly. So what counts is how much more than evenly it looks there; less
 * than a fifth is no habit. "The last few" holds others of the list and counts less: a narrower name may win. */
function headHabit(weights, of) {
  const T = of.ids.length, first = Math.min(4, T - 1);
  let best = { name: "", share: 0, merit: 0.2 };
  for (const [name, looksAt] of Object.entries(HABITS)) {
    let share = 0, even = 0;
    for (let t = first; t < T; t++) {
      for (let j = 0; j <= t; j++) {
        if (!looksAt(t, j, of)) continue;
        share += weights[t * T + j] / (T - first);
        even += 1 / (t + 1) / (T - first);
      }
    }
    const merit = (share - even) * (name === "the last few" ? 0.57 : 1);
    if (merit > best.merit) best = { name, share, merit };
  }
  return { name: best.name, share: best.share };
}

function headHabits(trace, ids, numHeads, texts) {
  const blank = texts.map((text) => text.trim() === ""), T = ids.length;
  let words = 0;
  const word = blank.map((isBlank, t) => (isBlank || texts[t].startsWith(" ") ? ++words : words));
  return trace.attention.flatMap((maps) => Array.from({ length: numHeads },
    (_, head) => headHabit(rowOf(maps, head, T * T), { ids, blank, word })));
}

/** One token's way through one layer and head. token, place (C): the rows that are looked up. x (C): the stream before
 * the layer. q (hs), keys and values (t + 1, hs), scores and weights (t + 1): of the head. mix (hs): what it found.
 * attended (C): the stream with the attention of all heads. hidden (4C): the MLP's neurons, after GELU. after (C): the
 * stream behind the layer. logits (V): behind the last layer. */
function followToken({ config, weights: w }, { ids, trace, logits }, t, layer, head) {
  const { embed_dim: C, num_heads: nh, vocab_size: V } = config, hs = C / nh, seen = ids.slice(0, t + 1);
  const part = (row, third) => rowOf(trace.qkv[layer], (3 * row + third) * nh + head, hs).slice();
  const q = part(t, 0), keys = seen.map((_, j) => part(j, 1)), values = seen.map((_, j) => part(j, 2));
  const weights = rowOf(trace.attention[layer], head * ids.length + t, ids.length).slice(0, t + 1);
  const row = (matrix, width = C, at = t) => rowOf(matrix, at, width).slice();
  return {
    token: row(w["token_embedding.weight"], C, ids[t]), place: row(w["position_embedding.weight"]),
    x: row(trace.residual[layer]), q, keys, values, weights,
    scores: Float32Array.from(keys, (key) => product(key, q) / Math.sqrt(hs)),
    mix: q.map((_, i) => values.reduce((sum, value, j) => sum + weights[j] * value[i], 0)),
    attended: row(trace.middle[layer]), hidden: row(trace.hidden[layer], 4 * C), after: row(trace.residual[layer + 1]),
    logits: row(logits, V),
  };
}

/** How much each part of the network adds to the logit of token `id` after token t: [{part, value}]. The stream is a
 * sum. The last layer norm divides it by its standard deviation, here fixed; then the logit is a sum too ("direct logit
 * attribution", Elhage et al. 2021), counted from the mean of all logits, because softmax only sees differences. */
function contributions(model, { trace }, t, id) {
  const { embed_dim: C, vocab_size: V } = model.config, { head, weights } = model;
  const direction = rowOf(head, id, C).slice();
  for (let i = 0; i < V * C; i++) direction[i % C] -= head[i] / V;
  const last = rowOf(trace.residual[trace.residual.length - 1], t, C);
  const centre = (x, middle = mean(x)) => x.map((v) => v - middle);
  const deviation = Math.sqrt(product(centre(last), centre(last)) / C + 1e-5), scale = weights["final_norm.weight"];
  const along = direction.map((v, i) => (v * scale[i]) / deviation), bias = weights["final_norm.bias"];
  const change = (after, before) => rowOf(after, t, C).map((v, i) => v - before[t * C + i]);
  const parts = [["embeddings", rowOf(trace.residual[0], t, C)], ...trace.middle.flatMap((middle, layer) => [
    [`attention ${layer + 1}`, change(middle, trace.residual[layer])],
    [`MLP ${layer + 1}`, change(trace.residual[layer + 1], middle)],
  ])].map(([part, x]) => ({ part, value: product(centre(x), along) }));
  return bias ? [...parts, { part: "bias", value: product(bias, direction) }] : parts;
}
