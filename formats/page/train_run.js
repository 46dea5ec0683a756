/* A training run in the worker: from a text to a network, and what the page sees meanwhile. */

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

/** Train a small network on a text, of which the last tenth is held out. Resolves to {losses, model}: of each step, and
 * as Book.useModel needs it. send gets {step, loss, heldOut, bigram, sample} after step 1, then once a second: the mean
 * loss since the last time, and what network and table of pairs reach on held-out text. stopped(): whether to end. */
async function trainNetwork({ text, steps, seed }, send, stopped) {
  const plain = alphabetOf(text), tokenizer = makeTokenizer(plain), ids = Uint16Array.from(tokenizer.encode(text));
  if (ids.length < MIN_LETTERS) throw new Error(`a text of at least ${MIN_LETTERS} letters is needed`);
  const config = { ...SHAPE, vocab_size: tokenizer.tokens.length }, { max_seq: T, vocab_size: V } = config;
  const cut = Math.floor(0.9 * ids.length), train = ids.subarray(0, cut), held = ids.subarray(cut);
  const weights = initialWeights(config, seed), random = new Mersenne(seed + 1), losses = [];
  const trainer = new Trainer(config, weights), count = Math.min(32, Math.floor((held.length - 1) / T));
  const places = Array.from({ length: count }, (_, i) => Math.floor((i * (held.length - 1 - T)) / count));
  const test = windowsAt(held, places, T), bigram = bigramLoss(train, test, V);
  let mark = performance.now(), reported = 0;
  for (let step = 1; step <= steps; step++) {
    const starts = Array.from({ length: BATCH }, () => Math.floor(random.uniform() * (cut - T)));
    losses.push(trainer.loss(...windowsAt(train, starts, T)));
    trainer.backward();
    trainer.step(RATE * Math.min(1, step / WARMUP) * (1 - 0.9 * step / steps));
    await letMessagesIn();
    const last = step === steps || stopped();
    if (last || step === 1 || performance.now() - mark > 1000) {
      const heldOut = trainer.loss(...test);
      const window = new SlidingWindow(trainer.model, [plain.startId], T / 2);
      const tokens = generateTokens(window, 100, seed, { temperature: 0.8 }, plain.specialIds);
      const sample = tokenizer.decode(Array.from(tokens, ({ id }) => id));
      send({ step, loss: mean(losses.slice(reported)), heldOut, bigram, sample });
      [mark, reported] = [performance.now(), step];
    }
    if (last) break;
  }
  const end = { text: tokenizer.decode([...held]), source: "the held-out end of the training text", unseen: true };
  const [, prompt] = /\s(\S{1,20})/u.exec(end.text) ?? ["", ""]; // a word
  return { losses, model: { config, tokenizer: plain, weights: weights.weights, excerpt: end, prompt } };
}
