/* The page's side of the model: the worker, and window.tinygpt for whoever opens the browser's console. */
"use strict";

/** The text of an element of the page that holds data. */
function dataOf(id) {
  return document.getElementById(id).textContent;
}

/** The worker. Its program is the text of the page's own engine scripts: there is no second file to load. */
class Engine {
  constructor(model, weights) {
    const program = Array.from(document.querySelectorAll("script.engine"), (script) => script.textContent).join("\n");
    const url = URL.createObjectURL(new Blob([program], { type: "text/javascript" }));
    this.worker = new Worker(url);
    this.jobs = new Map();
    this.count = 0;
    this.worker.onmessage = ({ data }) => this.receive(data);
    this.worker.onerror = (event) => this.fail(event.message || "the model's worker could not be started");
    this.ready = this.ask("load", { model, weights });
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

/** Throw an error that names the first option out of bounds. */
function checkOptions(options) {
  for (const [name, [min, max]] of Object.entries(BOUNDS)) {
    const value = options[name], whole = WHOLE.includes(name);
    if (!(typeof value === "number" && value >= min && value <= max) || (whole && value % 1)) {
      throw new Error(`${name} must be a ${whole ? "whole " : ""}number from ${min} to ${max}, not ${value}`);
    }
  }
}

/** What window.tinygpt holds.
 *
 * config: the network's shape. origin: where the model came from. encode(text) -> ids, decode(ids) -> text.
 * The others return promises. logits(ids) -> T arrays of V numbers. attention(ids) -> per layer a Float32Array
 * (heads, T, T). lens(ids) -> per layer, the embeddings first, a Float32Array (T, V) of logits.
 * generate({prompt, maxNewTokens, temperature, topK, topP, minP, repetitionPenalty, seed, stride}) -> the prompt and
 * its continuation; onTokens gets the explained tokens as they come. trusted: whether the page
 * has checked that it computes what it computed when it was made; before that, and if it failed, the promises reject.
 */
function makeApi(model, tokenizer, engine) {
  const generate = async (changes = {}, onTokens = () => {}, onJob = () => {}) => {
    const options = { ...defaultOptions(), ...changes }, { prompt, maxNewTokens, seed, stride } = options;
    checkOptions(options);
    const ids = tokenizer.encode(prompt);
    if (!ids.length) ids.push(tokenizer.startId);
    const job = engine.ask("generate", { ids, maxNewTokens, seed, stride, sampling: options }, onTokens);
    onJob(job.job);
    return prompt + tokenizer.decode(await job);
  };
  return {
    config: model.config,
    origin: model.origin,
    ready: engine.ready,
    trusted: false,
    encode: (text) => tokenizer.encode(text),
    decode: (ids) => tokenizer.decode(Array.from(ids)),
    logits: (ids) => engine.ask("logits", { ids: Array.from(ids) }),
    attention: async (ids) => (await engine.ask("look", { ids: Array.from(ids), off: [] })).attention,
    lens: (ids) => engine.ask("lens", { ids: Array.from(ids) }),
    generate,
  };
}
