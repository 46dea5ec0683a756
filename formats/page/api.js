/* The page's side of the model: the worker, and window.tinygpt for whoever opens the browser's console. */
"use strict";

/** The text of an element of the page that holds data. */
function dataOf(id) {
  return document.getElementById(id).textContent;
}

/** The data of the page. */
const page = { model: JSON.parse(dataOf("model")) };

/** The worker. Its program is the text of the page's own engine scripts: there is no second file to load. */
class Engine {
  /** Without a model it can only train one. */
  constructor(model, weights) {
    const program = Array.from(document.querySelectorAll("script.engine"), (script) => script.textContent).join("\n");
    const url = URL.createObjectURL(new Blob([program], { type: "text/javascript" }));
    this.worker = new Worker(url);
    this.jobs = new Map();
    this.count = 0;
    this.worker.onmessage = ({ data }) => this.receive(data);
    this.worker.onerror = (event) => this.fail(event.message || "the model's worker could not be started");
    if (model) this.ready = this.ask("load", { model, weights });
  }

  /** A promise of the answer to a question (a method of ModelServer); onPart gets the parts that come before it. */
  ask(question, request, onPart = () => {}) {
    const job = ++this.count;
    const promise = new Promise((resolve, reject) => this.jobs.set(job, { resolve, reject, onPart }));
    this.worker.postMessage({ job, question, request });
    return Object.assign(promise, { job });
  }

  receive({ job, part, answer, error }) {
    const waiting = this.jobs.get(job);
    if (part) return waiting.onPart(part);
    this.jobs.delete(job);
    if (error) waiting.reject(new Error(error));
    else waiting.resolve(answer);
  }

  fail(reason) {
    for (const { reject } of this.jobs.values()) reject(new Error(reason));
    this.jobs.clear();
  }
}

/** The bounds of generate's options: [minimum, maximum]. */
const BOUNDS = {
  maxNewTokens: [0, 1e9], temperature: [0, 1e6], topK: [0, 1e9], topP: [1e-9, 1], minP: [0, 1],
  repetitionPenalty: [1e-3, 1e6], seed: [0, Number.MAX_SAFE_INTEGER],
};
const WHOLE = ["maxNewTokens", "topK", "seed"];

/** generate.py's defaults, and a random seed. */
function defaultOptions() {
  return { prompt: "", maxNewTokens: 500, ...NO_FILTERS, temperature: 0.8, seed: Math.floor(Math.random() * 2 ** 31) };
}

/** Throw an error that names the first option that is unknown or out of bounds. */
function checkOptions(options, changes) {
  const unknown = Object.keys(changes).find((name) => !Object.hasOwn(options, name));
  if (unknown !== undefined) throw new Error(`there is no option ${unknown}: use ${Object.keys(options).join(", ")}`);
  if (typeof changes.prompt !== "string" && "prompt" in changes) throw new Error("prompt must be a string");
  for (const [name, [min, max]] of Object.entries(BOUNDS)) {
    const value = { ...options, ...changes }[name], whole = WHOLE.includes(name);
    if (!(typeof value === "number" && value >= min && value <= max) || (whole && value % 1)) {
      throw new Error(`${name} must be a ${whole ? "whole " : ""}number from ${min} to ${max}, not ${value}`);
    }
  }
}

/** The ids of a text as the model is fed: an empty text begins with the start token. */
function startIds(tokenizer, text) {
  const ids = tokenizer.encode(text);
  return ids.length ? ids : [tokenizer.startId];
}

/** What window.tinygpt holds.
 *
 * config: the network's shape. origin: where the model came from. chapters: the ids of the page's chapters, in order.
 * trusted: whether the page has checked that it computes what it computed when it was made. encode(text) -> ids,
 * decode(ids) -> text. story: the frames of training/story.py, each map as a Float32Array (T, T). The others return
 * promises, which reject before that check and after it has failed (but for train):
 *
 * logits(ids) -> T arrays of V numbers
 * attention(ids) -> per layer a Float32Array (heads, T, T)
 * lens(ids) -> per layer, the embeddings first, a Float32Array (T, V) of logits
 * follow({ids, position, layer, head}) -> every number on a token's way through a layer: see followToken
 * look({ids, off}) -> {attention, loss, lossWithout}; off: silent heads, as layer * num_heads + head
 * rankHeads({ids}) -> [{layer, head, loss, change}], the most needed head first
 * train({text, steps, seed}, onReport) -> {losses, model}: see trainNetwork; without a text on the page's excerpt
 * generate({prompt, maxNewTokens, temperature, topK, topP, minP, repetitionPenalty, seed, stride, off}, onTokens) ->
 *   the prompt and its continuation; onTokens gets {ids, surprises} as they come
 */
function makeApi(book, engine) {
  const ask = (question) => async (request) => engine.ask(question, { ...request, ids: Array.from(request.ids) });
  const generate = async (changes = {}, onTokens = () => {}) => {
    const options = { ...defaultOptions(), stride: Math.max(1, Math.floor(book.config.max_seq / 2)), off: [] };
    checkOptions(options, changes);
    const { prompt, maxNewTokens, seed, stride, off, ...sampling } = { ...options, ...changes };
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
