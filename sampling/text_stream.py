"""From tokens that arrive one by one to text that can be shown at once.

Two things make the end of a text uncertain: a token of bytes may end in the middle of a character, and the last
characters may be the beginning of a stop string. Both wait until the next tokens decide.
"""

import codecs
import functools
import itertools

from tokenizer import Tokenizer


def suppressed(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The special tokens, which are never sampled, without the one that ends a text."""
    return tuple(token for token in tokenizer.special_ids if token != tokenizer.eos_id)


def decode_documents(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of some ids, with a line end where a document ends."""
    groups = itertools.groupby(ids, key=lambda token: token == tokenizer.eos_id)
    return "".join("\n" if ended else tokenizer.decode(list(document)) for ended, document in groups)


class TextStream:
    """The text of one row of tokens; `stopped` turns True at the first stop string, which is not part of the text, or
    at the tokenizer's end-of-text token.

    Of several stop strings the one that is complete first ends the text, and of those that end together the longest.
    """

    def __init__(self, tokenizer: Tokenizer, stops: list[str]):
        self.tokenizer, self.stops = tokenizer, stops
        self.delay = max(map(len, stops), default=1) - 1  # characters that may begin a stop string
        self.pending = ""
        self.stopped = False
        decode = getattr(tokenizer, "decode_bytes", lambda ids: tokenizer.decode(ids).encode("utf-8"))
        self.bytes_of = functools.cache(lambda token: decode([token]))  # the same few tokens come again and again
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The text that is certain now that `token` has come: possibly none."""
        if token == self.tokenizer.eos_id:
            rest = self.finish()
            self.stopped = True
            return rest
        return self.release(self.decoder.decode(self.bytes_of(token)), self.delay)

    def finish(self) -> str:
        """The rest of the text, when no more tokens will come."""
        return self.release(self.decoder.decode(b"", final=True), 0)

    def release(self, piece: str, delay: int) -> str:
        """Take in more text; return what is certain now: all up to a stop string, or all but the last `delay`
        characters."""
        if self.stopped:
            return ""
        self.pending += piece
        end = max(0, len(self.pending) - delay)
        stops = [(self.pending.index(stop) + len(stop), -len(stop)) for stop in self.stops if stop in self.pending]
        if stops:
            end = sum(min(stops))  # where the stop string that ends first begins
            self.stopped = True
        certain, self.pending = self.pending[:end], self.pending[end:]
        return certain
