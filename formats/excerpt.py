"""The text that goes with a page, for the parts of it that need one: guessing, and training a network in the browser.

A page is sent to others. So only text that everyone has goes with it by itself; a person's own only if they ask for it.

An excerpt is a dictionary, as the page gets it: "source", what the text is taken from, without folders; "text"; and
"unseen", whether the model was not trained on it.
"""

import contextlib
from pathlib import Path

from corpora.documents import NAMES
from corpora.texts import read_blocks
from data_setup import TINYSHAKESPEARE, data_folder, load_corpus
from support.command import UserError

MAX_CHARACTERS = 100_000


def excerpt_of_corpus(origin: dict) -> dict | None:
    """The beginning of the validation split of the public corpus that a model was trained on; None if it was another,
    or is not on this machine."""
    name = origin.get("corpus")
    if name not in NAMES[1:]:  # but auto
        return None
    if name == "tinyshakespeare" and not (data_folder() / TINYSHAKESPEARE.file).exists():
        return None  # a page is no reason to download it
    with contextlib.suppress(UserError, OSError):
        corpus = load_corpus(name)
        if corpus.sha256 == origin.get("corpus_sha256"):  # of books, others may lie there now
            text = next(corpus.val.blocks())[:MAX_CHARACTERS]
            return {"source": f"the validation split of {name}", "text": text, "unseen": True}
    return None


def excerpt_of_file(path: Path) -> dict:
    """The beginning of a text file. Raises UserError if it is not text or has less than two characters, OSError if it
    cannot be read."""
    text = next(read_blocks(path), "")[:MAX_CHARACTERS]
    if len(text) < 2:
        raise UserError(f"--excerpt {path} has no text")
    return {"source": path.name, "text": text, "unseen": False}
