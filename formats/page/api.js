/* The page's side of the model: the worker, and window.tinygpt for whoever opens the browser's console. */

const page = { model: JSON.parse(byId("model").textContent) };

/** The worker. Its program is the text of the page's own engine scripts: there is no second file to load. */
class Engine {
  /** Without a model it can only train one. */
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
    const job = this.jobs.length;
    const promise = new Promise((resolve, reject) => this.jobs.push({ resolve, reject, onPart }));
    this.worker.postMessage({ job, question, request });
    return Object.assign(promise, { job });
  }
}

/** The bounds of the numbers among the options: [minimum, maximum, whether it is whole]. */
const BOUNDS = {
  maxNewTokens: [0, 1e9, true], temperature: [0, 1e6], topK: [0, 1e9, true], topP: [1e-9, 1], minP: [0, 1],
  repetitionPenalty: [1e-3, 1e6], seed: [0, Number.MAX_SAFE_INTEGER, true], steps: [1, 1e9, true],
};

/** The options with their changes; an error names the first that is unknown or out of bounds. */
function changedOptions(options, changes) {
  const all = { ...options, ...changes };
  for (const [name, value] of Object.entries(all)) {
    if (!Object.hasOwn(options, name)) throw new Error(`there is no option ${name}: use ${Object.keys(options)}`);
    if (["prompt", "text"].includes(name) && typeof value !== "string") throw new Error(`${name} must be a string`);
    const [min, max, whole] = { ...BOUNDS, stride: [1, book.config.max_seq, true] }[name] ?? [];
    if (min !== undefined && !(typeof value === "number" && value >= min && value <= max && !(whole && value % 1))) {
      throw new Error(`${name} must be a ${whole ? "whole " : ""}number from ${min} to ${max}, not ${value}`);
    }
  }
  return all;
}

/** The ids of a text as the model is fed: an empty text begins with the start token. */
function startIds(tokenizer, text) {
  const ids = tokenizer.encode(text);
  return ids.length ? ids : [tokenizer.startId];
}

/** What window.tinygpt holds: see docs/page.md. Promises reject before the page has checked itself, and after it has
 * failed to compute what it computed when it was made (but for train). */
function makeApi(book, engine) {
  const ask = (question) => async (request) => engine.ask(question, { ...request, ids: Array.from(request.ids) });
  const generate = async (changes = {}, onTokens = () => {}) => {
    const options = { prompt: "", maxNewTokens: 500, ...NO_FILTERS, temperature: 0.8, off: [],
      stride: Math.max(1, Math.floor(book.config.max_seq / 2)), seed: Math.floor(Math.random() * 2 ** 31) };
    const { prompt, maxNewTokens, seed, stride, off, ...sampling } = changedOptions(options, changes);
    const ids = startIds(book.tokenizer, prompt);
    const made = await engine.ask("generate", { ids, maxNewTokens, seed, stride, off, sampling }, onTokens);
    return prompt + book.tokenizer.decode(made);
  };
  return {
    get config() { return book.config; },
    origin: page.model.origin,
    chapters: book.chapters.map((chapter) => chapter.id),
    ready: engine.ready,
    trusted: false,
    encode: (text) => book.tokenizer.encode(text),
    decode: (ids) => book.tokenizer.decode(Array.from(ids)),
    logits: (ids) => ask("logits")({ ids }),
    attention: async (ids) => (await ask("look")({ ids })).attention,
    lens: (ids) => ask("lens")({ ids }),
    follow: ask("follow"),
    look: ask("look"),
    rankHeads: ask("rankHeads"),
    train: async (changes = {}, onReport = undefined) => startTraining(changes, onReport).job,
    get story() { return page.model.story.map((frame) => ({ ...frame, maps: storyMaps(frame) })); },
    generate,
  };
}
