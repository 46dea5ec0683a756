"""From tokens that arrive one by one to text that can be shown at once.

Two things make the end of a text uncertain: a token of bytes may end in the middle of a character, and the last
characters may be the beginning of a stop string. Both wait until the next token decides.
"""

import codecs
import copy
import functools

from tokenizer import Tokenizer


def suppressed(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The special tokens, which are never sampled, without the one that ends a text."""
    return tuple(token for token in tokenizer.special_ids if token != tokenizer.eos_id)


class TextStream:
    """The text of one row of tokens; `stopped` turns True at the first stop string, which is not part of the text, or
    at the tokenizer's end-of-text token.

    Of several stop strings the one that is complete first ends the text, and of those that end together the longest.
    """

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...] = ()):
        self.stops = stops
        self.pending = ""  # may be the beginning of a stop string
        self.stopped = False
        self.eos_id = tokenizer.eos_id
        # A character tokenizer's tokens are text; a byte-level one's are bytes, which the decoder puts together.
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        in_bytes = getattr(tokenizer, "decode_bytes", None)
        self.content = functools.cache(lambda token: (in_bytes or tokenizer.decode)([token]))

    def add(self, token: int) -> str:
        """The text that is certain now that `token` has come: possibly none."""
        if token == self.eos_id:
            rest = self.finish()
            self.stopped = True
            return rest
        content = self.content(token)
        return self.release(content if isinstance(content, str) else self.decoder.decode(content))

    def fork(self) -> "TextStream":
        """A copy that goes on by itself: for beams."""
        twin = copy.copy(self)
        twin.decoder = copy.copy(self.decoder)
        return twin

    def finish(self) -> str:
        """The rest of the text, when no more tokens will come."""
        certain = self.release(self.decoder.decode(b"", final=True))
        rest, self.pending = self.pending, ""
        return certain + rest

    def release(self, piece: str) -> str:
        """Take in more text; what is certain now. Character by character: how the text is cut must not matter."""
        ready = ""  # not kept: a text may be millions of tokens long
        for character in piece:
            if self.stopped:
                break
            self.pending += character
            stop = max((len(stop) for stop in self.stops if self.pending.endswith(stop)), default=0)
            cut = len(self.pending) - (stop or self.beginning_of_a_stop())
            ready += self.pending[:cut]
            self.pending = "" if stop else self.pending[cut:]
            self.stopped = stop > 0
        return ready

    def beginning_of_a_stop(self) -> int:
        """How many of the last pending characters may become a stop string."""
        longest = min(len(self.pending), max(map(len, self.stops), default=0))
        ends = (self.pending[-length:] for length in range(longest, 0, -1))
        return next((len(end) for end in ends if any(stop.startswith(end) for stop in self.stops)), 0)
