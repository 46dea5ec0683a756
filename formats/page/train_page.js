/* Chapter "Train your own": a small network that learns here, on the excerpt or a pasted text. */

const TRAIN_STEPS = 1000;

/** Train in a worker of its own: {job: a promise of {losses, model}, stop()}. */
function startTraining(changes, onReport) {
  const request = checked({ text: page.model.excerpt?.text, steps: TRAIN_STEPS, seed: 1337 }, changes);
  const engine = new Engine(), asked = engine.ask("train", request, onReport);
  return { job: asked.finally(() => engine.worker.terminate()), stop: () => engine.ask("stop", { job: asked.job }) };
}

const training = {
  id: "train", reports: [], chart: new LossChart(byId("train-loss")),

  setup() {
    if (page.model.excerpt) byId("train-paste").placeholder = `Paste one, or train on ${page.model.excerpt.source}.`;
    byId("train-go").addEventListener("click", () => (this.run ? this.run.stop() : this.train()));
    byId("train-use").addEventListener("click", () => this.use(this.trained));
    byId("own-back").addEventListener("click", () => this.use(page.model));
  },

  async train() {
    const text = byId("train-paste").value || (page.model.excerpt?.text ?? "");
    Object.assign(this, { reports: [], began: performance.now(), tokenizer: makeTokenizer(alphabetOf(text)) });
    byId("train-go").textContent = "Stop";
    byId("train-use").disabled = true;
    this.run = startTraining({ text }, (report) => this.report(report));
    try {
      this.trained = (await this.run.job).model;
    } catch (error) {
      byId("train-status").textContent = `That did not work: ${error.message}.`;
      byId("train-sample").replaceChildren(); // it is of a network that is lost
    }
    this.run = undefined;
    byId("train-use").disabled = !this.trained; // one that was trained before is kept
    byId("train-go").textContent = "Train again";
  },

  report(report) {
    this.reports.push(report);
    const { step, heldOut, bigram, sample, surprises } = report, seconds = (performance.now() - this.began) / 1000;
    const beaten = heldOut < bigram ? "The network beats the table of pairs." : "The table of pairs is still better.";
    byId("train-status").textContent = `Step ${step} of ${TRAIN_STEPS}, ${seconds.toFixed(0)} s: loss `
      + `${heldOut.toFixed(3)} on text it does not train on. ${beaten}`;
    byId("train-sample").replaceChildren(...tinted(this.tokenizer.encode(sample), surprises, this.tokenizer.stream()));
    const line = (name) => this.reports.map((one) => [one.step, one[name]]);
    this.chart.show([["train", "training", line("loss")], ["val", "held-out text", line("heldOut")]],
      [["bigram", "table of pairs, on held-out text", bigram]]);
  },

  /** Whether the book shows the network that wrote the sample. It is opened, unless it is still learning. */
  async opened() {
    if (!this.run && book.model !== this.trained) await this.use(this.trained);
    return !this.run;
  },

  async use(model) {
    writing.stop();
    await book.useModel(model);
    byId("own-back").hidden = !book.trained;
    byId("train-status").textContent = `The book now shows ${book.trained ? "your" : "its own"} network.`;
    if (!book.trained) byId("strip").focus(); // the button that was pressed is gone
    await writing.start();
  },
};
book.chapters.push(training);
