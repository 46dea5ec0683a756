/* Chapter "Train your own": a small network that learns here, on the excerpt or a pasted text. */
"use strict";

const TRAIN_STEPS = 1000;

/** Train in a worker of its own: {job: a promise of {losses, model}, stop()}. */
function startTraining({ text = page.model.excerpt?.text, steps = TRAIN_STEPS, seed = 1337, ...others }, onReport) {
  const [unknown] = Object.keys(others);
  if (unknown) throw new Error(`there is no option ${unknown}: use text, steps, seed`);
  if (typeof text !== "string") throw new Error("text must be a string");
  for (const [name, value, min] of [["steps", steps, 1], ["seed", seed, 0]]) {
    if (!(Number.isSafeInteger(value) && value >= min)) throw new Error(`${name} must be a whole number from ${min}`);
  }
  const engine = new Engine(), asked = engine.ask("train", { text, steps, seed }, onReport);
  const job = asked.finally(() => engine.worker.terminate());
  return { job, stop: () => engine.ask("stop", { job: asked.job }).catch(() => {}) };
}

const training = {
  id: "train", reports: [],

  setup() {
    const { excerpt } = page.model;
    byId("train-source").hidden = !excerpt;
    byId("train-own").checked = !excerpt;
    const letters = excerpt?.text.length.toLocaleString("en");
    if (excerpt) byId("train-excerpt").append(`${excerpt.source} (${letters} letters)`);
    for (const input of document.querySelectorAll("input[name=train-text]")) {
      input.addEventListener("change", () => this.choose());
    }
    byId("train-go").addEventListener("click", () => (this.run ? this.run.stop() : this.train().catch(alertUser)));
    byId("train-use").addEventListener("click", () => this.use(this.trained).catch(alertUser));
    byId("own-back").addEventListener("click", () => this.use(undefined).catch(alertUser));
    new ResizeObserver(() => this.draw()).observe(byId("train-loss"));
    this.choose();
  },

  choose() {
    byId("train-paste").hidden = byId("train-paste-label").hidden = !byId("train-own").checked;
  },

  async train() {
    const text = byId("train-own").checked ? byId("train-paste").value : page.model.excerpt.text;
    this.reports = [];
    this.began = performance.now();
    byId("train-status").textContent = "Training begins.";
    byId("train-go").textContent = "Stop";
    byId("train-use").disabled = true;
    this.run = startTraining({ text }, (report) => this.report(report));
    try {
      this.trained = (await this.run.job).model;
      byId("train-use").disabled = false;
    } catch (error) {
      byId("train-status").textContent = `That did not work: ${error.message}.`;
    }
    this.run = undefined;
    byId("train-go").textContent = "Train again";
  },

  /** What the worker tells about once a second. */
  report(report) {
    if (!this.reports.length) {
      const table = `knowing one token before: ${report.bigram.toFixed(3)}`;
      byId("train-legend").replaceChildren(...chartKeys([["training", "train"], ["held-out text", "val"],
        [table, "bigram"]]), "(nats per token)");
    }
    this.reports.push(report);
    const { step, heldOut, bigram, sample } = report, seconds = (performance.now() - this.began) / 1000;
    const beaten = heldOut < bigram ? "The network beats the table of pairs." : "The table of pairs is still better.";
    byId("train-status").textContent = `Step ${step} of ${TRAIN_STEPS}, ${seconds.toFixed(0)} s: loss `
      + `${heldOut.toFixed(3)} on text it does not train on. ${beaten}`;
    byId("train-sample").textContent = escapeInvisible(sample);
    this.draw();
  },

  draw() {
    if (!this.reports.length) return;
    const line = (name) => this.reports.map((report) => [report.step, report[name]]);
    const bigram = this.reports.slice(0, 1).map((report) => ["bigram", report.bigram]);
    drawChart(byId("train-loss"), [["train", line("loss")], ["val", line("heldOut")]], bigram, "steps");
  },

  /** Let all chapters show this model, or the page's own one. */
  async use(model) {
    writing.stop();
    await book.useModel(model);
    byId("own").hidden = !model;
    await writing.write(startIds(book.tokenizer, byId("prompt").value));
  },
};
book.add(training);
