/* Chapter "Guess": you against the model, token by token (Shannon 1951, Prediction and entropy of printed English). */

const ROUND = 20, MIN_CONTEXT = 8; // guesses, and tokens before the first

const guessing = {
  id: "guess",

  setup() {
    byId("guess-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.bet();
    });
    byId("guess-new").addEventListener("click", () => this.open());
    byId("guess-line").addEventListener("click", () => this.fill("⏎"));
    byId("guess-input").addEventListener("input", ({ target }) => this.fill(target.value));
    byId("guess-paste").addEventListener("input", () => this.open());
    byId("guess-take").addEventListener("click", () => writing.write(this.ids.slice(0, this.at), undefined, 0));
    const { excerpt } = page.model;
    byId("guess-name").textContent = excerpt ? `From ${excerpt.source}` : "Your text";
    const shares = [0.2, 0.5, 0.8, 0.97].map((share) => html("option", { value: share }, percent(share)));
    byId("guess-sure").append(...shares);
    byId("guess-sure").value = 0.5;
    byId("guess-own").hidden = Boolean(excerpt);
  },

  model() { // a network that was trained here may have seen the excerpt
    byId("guess-unseen").hidden = book.trained || !page.model.excerpt?.unseen;
    this.open();
  },

  /** A space shows as one, and of characters only the last counts. */
  fill(text) {
    const shown = text.replace(/ /g, "␣");
    byId("guess-input").value = book.tokenizer.bytes ? shown : Array.from(shown).pop() ?? "";
  },

  /** A random place of the text: the model reads what you read. */
  open() {
    const ids = book.tokenizer.encode(page.model.excerpt?.text ?? byId("guess-paste").value);
    const length = Math.min(book.config.max_seq, 200 + ROUND);
    const start = Math.floor(Math.random() * Math.max(1, ids.length - length));
    Object.assign(this, { ids: ids.slice(start, start + length), you: [], theirs: [] });
    this.at = this.ids.length - ROUND;
    this.counts = new Float64Array(book.config.vocab_size).fill(0.5);
    for (const id of ids) this.counts[id]++;
    byId("guess-form").querySelector("button.main").disabled = this.at < MIN_CONTEXT;
    byId("guess-take").hidden = true;
    this.stream = book.tokenizer.stream();
    byId("guess-text").replaceChildren();
    this.append(this.ids.slice(0, Math.max(0, this.at)), []);
    this.score();
  },

  append(ids, surprises) {
    const box = byId("guess-text");
    box.append(...tinted(ids, surprises, this.stream));
    box.scrollTop = box.scrollHeight;
  },

  /** What a bet gives to the token that really came. */
  share(guess, sure, truth) {
    if (guess === truth) return sure;
    const total = this.counts.reduce((sum, count) => sum + count, 0);
    return ((1 - sure) * this.counts[truth]) / (total - (guess === undefined ? 0 : this.counts[guess]));
  },

  async bet() {
    const input = byId("guess-input"), text = input.value.replaceAll("␣", " ").replaceAll("⏎", "\n");
    const sure = Number(byId("guess-sure").value), truth = this.ids[this.at];
    if (!text || this.you.length >= ROUND) return;
    const at = this.at++; // one bet for each token, even if the button is pressed twice
    const { logits } = await book.ask("token", { ids: this.ids, t: at - 1 });
    const [guess] = book.tokenizer.encode(text), shares = softmax(logits), best = argmax(logits);
    const yours = -Math.log(this.share(guess, sure, truth)), models = -Math.log(shares[truth]);
    this.you.push(yours);
    this.theirs.push(models);
    input.value = "";
    this.append([truth], [yours]);
    byId("guess-result").replaceChildren("It was ", tokenCode(truth, "really"), guess === truth ? ", right! " : ". ",
      `Your surprise: ${yours.toFixed(2)} nats. The model gave it ${percent(shares[truth])}: `,
      `${models.toFixed(2)} nats; its first guess was `, tokenCode(best), ". ");
    this.score();
  },

  /** The mean surprise of both so far, as bars up to that of blind guessing. */
  score() {
    const rounds = this.you.length, blind = Math.log(book.config.vocab_size), { val_loss: val } = page.model.origin;
    const [you, model] = [this.you, this.theirs].map((nats) => nats.reduce((sum, n) => sum + n, 0) / rounds);
    const losses = [...(rounds ? [["you", you], ["the model", model]] : []),
      ...(typeof val === "number" && !book.trained ? [["its validation loss", val]] : []), ["blind guessing", blind]];
    byId("guess-score").replaceChildren(html("p", {}, `${rounds} of ${ROUND} bets. Mean surprise in nats:`),
      ...losses.map(([name, nats]) => barRow(name, bar(Math.min(1, nats / blind), nats.toFixed(2)))));
    if (rounds < ROUND) return;
    byId("guess-result").append(you < model ? "You beat the model!" : "The model was less surprised.");
    byId("guess-take").hidden = false;
  },
};
book.chapters.push(guessing);
