/** Say in words what went wrong, wherever it was. */
function sayWrong({ message }) {
  byId("alert").textContent = `Something went wrong: ${message}`;
  byId("alert").hidden = false;
  if (!window.tinygpt.trusted) byId("status").textContent = "The model was not loaded.";
}
addEventListener("unhandledrejection", ({ reason }) => sayWrong(reason));

/** Keep chapter, prompt, settings and token in the address, #chapter&prompt=…&seed=…&token=…, to be shared. A network
 * that was trained here is not in the file, and a pasted text is private: of them the address says nothing. */
function keepState() {
  clearTimeout(keepState.timer); // browsers refuse to change the address too often
  keepState.timer = setTimeout(() => {
    const shared = book.trained || writing.secret ? "" : `&${writing.shared()}`;
    history.replaceState(writing.kept(), "", `#${book.current}${shared}`);
  }, 400);
}

// Back and Forward. Without a state, the address was changed by hand.
addEventListener("popstate", ({ state }) => (state ? writing.bringBack(state) : location.reload()));
addEventListener("click", () => { byId("taken").hidden = true; }, true);
// Whoever leaves would lose the network that was trained here.
addEventListener("beforeunload", (event) => { if (training.trained || training.run) event.preventDefault(); });

async function main() {
  const engine = new Engine(page.model, byId("weights").textContent);
  Object.assign(book, { model: page.model, config: page.model.config, tokenizer: makeTokenizer(page.model.tokenizer) });
  book.open(engine);
  window.tinygpt = makeApi(book, engine);
  const [chapter, ...rest] = location.hash.slice(1).split("&"), state = new URLSearchParams(rest.join("&"));
  await engine.ready;
  window.tinygpt.trusted = true;
  for (const { id } of book.chapters) byId(id).inert = false;
  await book.useModel(page.model);
  writing.restore(state);
  const place = book.chapters.findIndex(({ id }) => id === chapter);
  if (place > 0) showChapter(place);
  else markChapter(book.chapters[0].id);
  const more = (state.get("more")?.match(/\d+/g) ?? []).map(Number).filter((id) => id < book.config.vocab_size);
  const length = state.get("maxNewTokens"); // of a text that was stopped it lies between the steps of the slider
  const exact = /^\d{1,4}$/.test(length) && writing.checkSeed() ? { maxNewTokens: Number(length) } : undefined;
  await writing.start(more, exact, Math.abs(parseInt(state.get("first"), 10)));
  if (state.has("token")) await book.moveTo(parseInt(state.get("token"), 10) - 1 || 0);
}

main().catch(sayWrong);
