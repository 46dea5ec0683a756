/* A training run in the worker: from a text to a network, what the page sees meanwhile, and the story of the run. */

const SHAPE = { max_seq: 32, embed_dim: 48, num_heads: 4, num_layers: 1, gelu: "exact", bias: true };
const BATCH = 8; // windows
const RATE = 0.01, WARMUP = 30; // the learning rate at its peak, and after how many steps it is reached
const MIN_LETTERS = 1000, MAX_ALPHABET = 200;

/** A tokenizer of characters, as in the page's data: the text's own ones, the most frequent if there are many. */
function alphabetOf(text) {
  const counts = new Map();
  for (const character of text) counts.set(character, (counts.get(character) ?? 0) + 1);
  const characters = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a)).slice(0, MAX_ALPHABET).sort();
  return { kind: "char", characters, startId: 2 + Math.max(0, characters.indexOf("\n")), endId: null,
    specialIds: [0, 1] };
}

/** The loss of a table that knows how often each token followed each in `train`: of targets after inputs. */
function bigramLoss(train, [inputs, targets], V) {
  const counts = new Float64Array(V * V).fill(0.1); // of no pair is it certain that it never comes
  for (let i = 0; i + 1 < train.length; i++) counts[train[i] * V + train[i + 1]]++;
  let loss = 0;
  for (let i = 0; i < inputs.length; i++) {
    const row = counts.subarray(inputs[i] * V, (inputs[i] + 1) * V);
    loss -= Math.log(row[targets[i]] / row.reduce((sum, count) => sum + count)) / inputs.length;
  }
  return loss;
}

/** Windows of T tokens that begin at `starts`, side by side: [inputs (N), targets (N)]. */
function windowsAt(ids, starts, T) {
  const part = (shift) => Uint16Array.from(starts.flatMap((at) => [...ids.subarray(at + shift, at + shift + T)]));
  return [part(0), part(1)];
}

/** The points, turned or mirrored so that they lie as near to the earlier ones as they can (Schönemann 1966). */
function aligned(points, earlier) {
  const along = (i, j) => points.reduce((sum, point, n) => sum + point[i] * earlier[n][j], 0);
  const [a, b, c, d] = [along(0, 0), along(0, 1), along(1, 0), along(1, 1)];
  const flip = Math.hypot(a + d, b - c) < Math.hypot(a - d, b + c) ? -1 : 1;
  const angle = Math.atan2(b - flip * c, a + flip * d), cos = Math.cos(angle), sin = Math.sin(angle);
  return points.map(([x, y]) => [cos * x - flip * sin * y, sin * x + flip * cos * y]);
}

/** Rows (N, C) as points on their first two principal components, near those of an earlier plane, and the axes' shares
 * of the variance: as formats/embedding_map.py, but its axes are found by power iteration. */
function plane(rows, earlier) {
  const N = rows.length, C = rows[0].length, middle = rows[0].map((_, i) => mean(rows.map((row) => row[i])));
  const centred = Float32Array.from(rows.flatMap((row) => Array.from(row, (value, i) => value - middle[i])));
  const columns = transposed(centred, N, C), covariance = new Float32Array(C * C), flat = new Float32Array(2 * N);
  linear(covariance, columns, columns, null, C, C, N);
  const axes = Float32Array.from({ length: 2 * C }, (_, i) => Math.cos(i));
  const [one, two] = [0, 1].map((n) => rowOf(axes, n, C));
  for (let i = 0; i < 1000; i++) {
    linear(axes, axes.slice(), covariance, null, 2, C, C);
    for (const axis of [one, two]) {
      if (axis === two) addWeighted(two, 0, Float32Array.of(-product(one, two)), one, 0, C, 1, C);
      const length = Math.sqrt(product(axis, axis)) || 1;
      axis.forEach((value, n) => { axis[n] = value / length; });
    }
  }
  linear(flat, centred, axes, null, N, 2, C);
  const points = rows.map((_, n) => [flat[2 * n], flat[2 * n + 1]]), total = product(centred, centred) || 1;
  const shares = [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis] ** 2, 0) / total);
  return { points: earlier ? aligned(points, earlier.points) : points, shares };
}

/** What a frame of the story (training/story.py) tells of a network: maps and surprises of the ids (T), and its
 * embeddings as points that fit an earlier frame. */
function storyFrame(network, ids, earlier) {
  const server = new ModelServer(), { vocab_size: V, embed_dim: C, num_heads: heads } = network.config, T = ids.length;
  server.use(network);
  const { trace: { attention: [all] }, surprises } = server.reading(ids);
  const seen = all.filter((_, i) => i % T <= Math.floor(i / T) % T); // up to the diagonal
  const embedded = (name, rows) => rows.map((row) => rowOf(network.weights[`${name}_embedding.weight`], row, C));
  const shown = Array.from({ length: Math.min(150, V - 2) }, (_, i) => i + 2); // without the special ones
  return {
    ids, surprise: Array.from(surprises.subarray(1)),
    heads: Array.from({ length: heads }, (_, head) => [0, head]),
    maps: btoa(String.fromCharCode(...seen.map((weight) => Math.round(255 * weight)))),
    tokens: { ids: shown, ...plane(embedded("token", shown), earlier?.tokens) },
    positions: plane(embedded("position", ids.map((_, t) => t)), earlier?.positions),
  };
}

/** Train a small network on a text, of which the last tenth is held out. Resolves to {losses, model}: of each step, and
 * as Book.useModel needs it. send gets {step, loss, heldOut, bigram, sample, surprises} with each frame after step 0,
 * and once a second: mean loss since the last time, and on held-out text. stopped(): whether to end. */
async function trainNetwork({ text, steps, seed }, send, stopped) {
  const plain = alphabetOf(text), tokenizer = makeTokenizer(plain), ids = Uint16Array.from(tokenizer.encode(text));
  if (ids.length < MIN_LETTERS) throw new Error(`a text of at least ${MIN_LETTERS} letters is needed`);
  const config = { ...SHAPE, vocab_size: tokenizer.tokens.length }, { max_seq: T, vocab_size: V } = config;
  const cut = Math.floor(0.9 * ids.length), train = ids.subarray(0, cut), held = [...ids.subarray(cut)];
  const { all, weights } = initialWeights(config, seed), random = new Mersenne(seed + 1), losses = [];
  const trainer = new Trainer(config, { all, weights }), count = Math.min(32, Math.floor((held.length - 1) / T));
  const places = Array.from({ length: count }, (_, i) => Math.floor((i * (held.length - 1 - T)) / count));
  const test = windowsAt(ids.subarray(cut), places, T), bigram = bigramLoss(train, test, V);
  const began = performance.now(), network = { config, tokenizer: plain, weights }, story = [];
  let mark = began, reported = 0, due = 0;
  const report = (step, isLast) => {
    const heldOut = trainer.loss(...test), loss = step ? mean(losses.slice(reported)) : null;
    const window = new SlidingWindow(trainer.model, [plain.startId], T / 2);
    const made = [...generateTokens(window, 100, seed, { temperature: 0.8 }, plain.specialIds)];
    const sample = tokenizer.decode(made.map(({ id }) => id)), surprises = made.map(({ surprise }) => surprise);
    if (step) send({ step, loss, heldOut, bigram, sample, surprises });
    if (step >= due || isLast) {
      const frame = storyFrame(network, held.slice(0, T), story[story.length - 1]);
      story.push({ step, train_loss: loss, val_loss: heldOut, sample, sample_surprise: surprises, ...frame });
      due = Math.ceil(1.5 * step + 1); // ever fewer: the network learns most in its first steps
    }
    [mark, reported] = [performance.now(), step];
  };
  report(0);
  for (let step = 1, isLast = false; !isLast; step++) {
    const starts = Array.from({ length: BATCH }, () => Math.floor(random.uniform() * (cut - T)));
    losses.push(trainer.loss(...windowsAt(train, starts, T)));
    trainer.backward();
    trainer.step(RATE * Math.min(1, step / WARMUP) * (1 - 0.9 * step / steps));
    await letMessagesIn();
    isLast = step === steps || stopped();
    if (isLast || step >= due || performance.now() - mark > 1000) report(step, isLast);
  }
  const { step, val_loss } = story[story.length - 1], train_seconds = (performance.now() - began) / 1000;
  const recipe = { steps, batch_size: BATCH, windows: "random", optimizer: "adamw", lr: RATE, weight_decay: DECAY,
    warmup: WARMUP, schedule: "linear, to a tenth", init: "normal", dtype: "float32" };
  const corpus = `a text of ${ids.length.toLocaleString("en")} characters`;
  const origin = { corpus, step, val_loss, train_seconds, seed, bigram_held_out: bigram, recipe };
  const excerpt = { text: tokenizer.decode(held), source: "the held-out end of the training text", unseen: true };
  const [, prompt] = /\s(\S{1,20})/u.exec(excerpt.text) ?? ["", ""]; // a word
  return { losses, model: { ...network, excerpt, prompt, origin, story, curves: story.slice(1), parameters: all.length,
    precision: "float32" } };
}
