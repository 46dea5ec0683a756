/* Chapter "How it learned": what the weights have come to, as maps of the embeddings. */
"use strict";

book.add({
  id: "learned",
  model() {
    drawTokenMap(page.model.maps.tokens);
    drawPositionMap(page.model.maps.positions);
  },
});
