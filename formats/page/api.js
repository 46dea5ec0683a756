/* The page's side of the model: the worker, and window.tinygpt for whoever opens the browser's console. */

const page = { model: JSON.parse(byId("model").textContent) };

/** The worker. Its program is the text of the page's engine scripts. Without a model it can only train one. */
class Engine {
  constructor(model, weights) {
    const program = Array.from(document.querySelectorAll("script.engine"), (script) => script.textContent).join("\n");
    this.worker = new Worker(URL.createObjectURL(new Blob([program], { type: "text/javascript" })));
    this.jobs = [];
    this.worker.onmessage = ({ data: { job, part, answer, error } }) => {
      const { onPart, resolve, reject } = this.jobs[job];
      if (part) onPart(part);
      else if (error) reject(new Error(error));
      else resolve(answer);
    };
    this.worker.onerror = ({ message }) => {
      for (const { reject } of this.jobs) reject(new Error(message || "the worker could not be started"));
    };
    if (model) this.ready = this.ask("load", { model, weights });
  }

  /** A promise of the answer to a question (a method of ModelServer); onPart gets the parts that come before it. */
  ask(question, request, onPart = () => {}) {
    if (typeof onPart !== "function") throw new TypeError("the second argument must be a function");
    const job = this.jobs.length;
    const promise = new Promise((resolve, reject) => this.jobs.push({ resolve, reject, onPart }));
    this.worker.postMessage({ job, question, request });
    return Object.assign(promise, { job });
  }
}

// What an option can be: [a test, in words].
const STRING = [(value) => typeof value === "string", "a string"];

function number(min, max, whole = true) {
  const fits = (value) => typeof value === "number" && value >= min && value <= max && !(whole && value % 1);
  return [fits, `a ${whole ? "whole " : ""}number from ${min} to ${max}`];
}

function list(count, max, min = 0) {
  const [fits, words] = number(0, count - 1);
  return [(value) => (Array.isArray(value) || ArrayBuffer.isView(value)) && Array.from(value).every(fits)
    && value.length >= min && value.length <= max, `a list of ${min} to ${max} items, each ${words}`];
}

/** The options with their changes; a TypeError names the first that is unknown or not what it has to be. */
function checked(options, changes, minIds = 1) {
  if (typeof changes !== "object" || !changes) throw new TypeError(`needs an object of ${Object.keys(options)}`);
  const all = { ...options, ...changes };
  const { vocab_size: V, max_seq: maxSeq, num_layers: layers, num_heads: heads } = book.config;
  const rules = {
    prompt: STRING, text: STRING, maxNewTokens: number(0, 1e9), steps: number(1, 1e9), stride: number(1, maxSeq),
    temperature: number(0, 1e6, false), topK: number(0, 1e9), topP: number(1e-9, 1, false), minP: number(0, 1, false),
    repetitionPenalty: number(1e-3, 1e6, false), seed: number(0, Number.MAX_SAFE_INTEGER),
    ids: list(V, maxSeq, minIds), tokens: list(V, 1e9), off: list(layers * heads, 1e9),
    position: number(0, all.ids?.length - 1), layer: number(0, layers - 1), head: number(0, heads - 1),
  };
  for (const [name, value] of Object.entries(all)) {
    if (!Object.hasOwn(options, name)) throw new TypeError(`there is no option ${name}: use ${Object.keys(options)}`);
    const [fits, words] = rules[name];
    if (!fits(value)) throw new TypeError(`${name} must be ${words}`);
  }
  return all;
}

/** The ids of a text as the model is fed: an empty text begins with the start token. */
function startIds(tokenizer, text) {
  const ids = tokenizer.encode(text);
  return ids.length ? ids : [tokenizer.startId];
}

/** What window.tinygpt holds: see docs/page.md. Promises wait until the page has checked itself. */
function makeApi(book, engine) {
  const ask = (question, options = {}, minIds = 1) => async (changes) => {
    const request = checked({ ids: undefined, ...options }, changes, minIds);
    return engine.ask(question, { ...request, ids: Array.from(request.ids) });
  };
  const look = ask("look", { off: [] });
  return {
    get config() { return book.config; },
    get origin() { return book.model.origin; },
    chapters: book.chapters.map((chapter) => chapter.id),
    ready: engine.ready,
    trusted: false,
    encode: (text) => book.tokenizer.encode(checked({ text }, {}).text),
    decode: (tokens) => book.tokenizer.decode(Array.from(checked({ tokens }, {}).tokens)),
    logits: (ids) => ask("logits")({ ids }),
    attention: async (ids) => (await look({ ids })).attention,
    lens: (ids) => ask("lens")({ ids }),
    follow: ask("follow", { position: undefined, layer: undefined, head: undefined }),
    look,
    rankHeads: ask("rankHeads", {}, 2), // a loss needs two tokens
    train: async (changes = {}, onReport = undefined) => startTraining(changes, onReport).job,
    get story() { return book.model.story.map((frame) => ({ ...frame, maps: storyMaps(frame) })); },
    async generate(changes = {}, onTokens = undefined) {
      const options = { prompt: "", maxNewTokens: 500, ...NO_FILTERS, temperature: 0.8, off: [],
        stride: Math.max(1, Math.floor(book.config.max_seq / 2)), seed: Math.floor(Math.random() * 2 ** 31) };
      const { prompt, maxNewTokens, seed, stride, off, ...sampling } = checked(options, changes);
      const ids = startIds(book.tokenizer, prompt);
      const made = await engine.ask("generate", { ids, maxNewTokens, seed, stride, off, sampling }, onTokens);
      return prompt + book.tokenizer.decode(made.filter((id) => id !== book.tokenizer.endId));
    },
  };
}
