/* The page begins here. */
"use strict";

/** What all panels share: the data of the page, and the tokenizer. */
const page = { model: JSON.parse(dataOf("model")) };
page.tokenizer = makeTokenizer(page.model.tokenizer);

/** Say in words what went wrong. */
function alertUser(error) {
  byId("alert").textContent = `Something went wrong: ${error.message ?? error}`;
  byId("alert").hidden = false;
}

/** One line about the model. */
function summary({ config, origin, parameters }) {
  const corpus = origin.corpus ? `, trained on ${origin.corpus}` : "";
  return `${parameters.toLocaleString("en")} parameters in ${config.num_layers} layers of ${config.num_heads} heads`
    + `${corpus}. It runs here, in your browser, on your machine.`;
}

async function main() {
  byId("summary").textContent = summary(page.model);
  const engine = new Engine(page.model, dataOf("weights")), { config } = page.model;
  window.tinygpt = makeApi(page.model, page.tokenizer, engine);
  const look = new LookPanel(engine, config);
  const write = new WritePanel(window.tinygpt, engine, (prompt, ids) => {
    look.show([...page.tokenizer.encode(prompt), ...ids]).catch(alertUser);
  });
  byId("prompt").value = page.model.prompt;
  showLearn();
  drawTokenMap(page.model.maps.tokens);
  drawPositionMap(page.model.maps.positions);
  await engine.ready;
  window.tinygpt.trusted = true;
  await write.write();
}

main().catch((error) => {
  byId("status").textContent = "The model was not loaded.";
  alertUser(error);
});
