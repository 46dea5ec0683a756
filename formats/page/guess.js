/* Chapter "Guess": you against the model, token by token (Shannon 1951, Prediction and entropy of printed English). */

const ROUND = 20, MIN_IDS = ROUND + 8; // guesses, and tokens with those before the first

const say = (...words) => byId("guess-result").replaceChildren(...words);

const guessing = {
  id: "guess",

  setup() {
    byId("guess-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.bet();
    });
    byId("guess-new").addEventListener("click", () => this.open());
    byId("guess-line").addEventListener("click", () => this.fill("⏎"));
    const typed = ({ target, isComposing }) => isComposing || this.fill(target.value); // of Chinese, by several keys
    for (const kind of ["input", "compositionend"]) byId("guess-input").addEventListener(kind, typed);
    byId("guess-paste").addEventListener("input", () => this.open());
    byId("guess-sure").append(...[0.2, 0.5, 0.8, 0.97].map((p) => html("option", { value: p }, percent(p))));
    byId("guess-sure").value = 0.5;
  },

  /** A network that was trained here knows the characters of its own text; the end of that it has never seen. */
  model() {
    const { excerpt } = book.model, beginning = excerpt?.text.slice(0, 1000) ?? "";
    this.excerpt = book.tokenizer.encode(beginning).length < MIN_IDS ? undefined : excerpt;
    byId("guess-name").textContent = !this.excerpt ? "Your text"
      : excerpt.unseen ? "Text it was not trained on" : `From ${excerpt.source}`;
    byId("guess-own").hidden = Boolean(this.excerpt);
    this.open();
  },

  /** A space shows as one, and of characters only the last counts. */
  fill(text) {
    const shown = text.replace(/ /g, "␣");
    byId("guess-input").value = book.tokenizer.bytes ? shown : Array.from(shown).pop() ?? "";
  },

  /** A random place of the text: the model reads what you read. */
  open() {
    const text = this.excerpt?.text ?? byId("guess-paste").value, ids = book.tokenizer.encode(text);
    const { max_seq: maxSeq, vocab_size: V } = book.config, length = Math.min(Math.max(maxSeq, MIN_IDS), 200 + ROUND);
    const start = Math.floor(Math.random() * Math.max(1, ids.length - length));
    Object.assign(this, { ids: ids.slice(start, start + length), you: [], theirs: [] });
    Object.assign(this, { at: this.ids.length - ROUND, stream: book.tokenizer.stream() });
    this.counts = new Float64Array(V).fill(0.5);
    byId("guess-input").value = "";
    for (const id of ids) this.counts[id]++;
    const unit = book.tokenizer.bytes ? "token" : "letter", tooShort = this.ids.length < MIN_IDS;
    byId("guess-form").querySelector("button.main").disabled = tooShort;
    byId("guess-text").replaceChildren(...tinted(this.ids.slice(0, Math.max(0, this.at)), [], this.stream));
    say(tooShort ? `A text of at least ${MIN_IDS} ${unit}s is needed. `
      : `Type a ${unit} and bet. ${book.tokenizer.bytes ? "Most words begin with their space: type it too. "
        : "A space and the end of a line count too. "}`, unknownText(text));
    this.score();
  },

  async bet() {
    const input = byId("guess-input"), text = input.value.replaceAll("␣", " ").replaceAll("⏎", "\n");
    const { ids, at, you, theirs } = this, sure = Number(byId("guess-sure").value), truth = ids[at];
    if (truth === undefined) return say(`All ${ROUND} bets are made. For new ones press “Another place”.`);
    if (!text) return say("First say what comes next.");
    this.at++; // one bet for each token, even if the button is pressed twice
    input.value = "";
    const { max_seq: maxSeq } = book.config, from = Math.max(0, at - maxSeq);
    const { logits } = await book.ask("token", { ids: ids.slice(from, from + maxSeq), t: at - 1 - from });
    if (you !== this.you) return; // another place was chosen
    const [guess] = book.tokenizer.encode(text), shares = softmax(logits), best = argmax(logits);
    const others = this.counts.reduce((sum, count) => sum + count) - this.counts[guess];
    const share = guess === truth ? sure : (1 - sure) * this.counts[truth] / others; // given to what really came
    const yours = -Math.log(share), models = -Math.log(shares[truth]);
    you.push(yours);
    theirs.push(models);
    byId("guess-text").append(...tinted([truth], [yours], this.stream));
    say("It was ", tokenCode(truth, "really"), guess === truth ? ", right! " : ". ",
      `Your surprise: ${fixed(yours)} nats. The model gave it ${percent(shares[truth])}: `,
      `${fixed(models)} nats; its first guess was `, tokenCode(best), ". ");
    return this.score();
  },

  score() {
    const rounds = this.you.length, blind = Math.log(book.config.vocab_size), { val_loss: val } = book.model.origin;
    const [you, model] = [this.you, this.theirs].map(mean);
    const losses = [...(rounds ? [["you", you], ["the model", model]] : []),
      ...(typeof val === "number" ? [["the model overall", val]] : []), ["blind guessing", blind]];
    byId("guess-score").replaceChildren(html("p", {}, `${rounds} of ${ROUND} bets. Mean surprise in nats:`),
      ...losses.map(([name, nats]) => barRow(name, bar(nats / Math.max(blind, you || 0), nats.toFixed(2)))));
    if (rounds === ROUND) byId("guess-result").append(you < model ? "You beat the model!" : "The model beat you.");
  },
};
book.chapters.push(guessing);
