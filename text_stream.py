"""From tokens that arrive one by one to text that can be shown at once.

Two things make the end of a text uncertain: a token may end in the middle of a character, and the last characters may
be the beginning of a stop string. Both are held back until the next token decides.
"""

from tokenizer import REPLACEMENT

LONGEST_CHARACTER = 4  # bytes in UTF-8, so at most as many tokens


class TextStream:
    """The text of one row of tokens; `stopped` turns True at the first stop string, which is not part of the text."""

    def __init__(self, tokenizer, stops: tuple[str, ...] = ()):
        self.tokenizer = tokenizer
        self.stops = stops
        self.undecoded: list[int] = []  # tokens that end in the middle of a character
        self.held = ""  # text that may be the beginning of a stop string
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain now that `token` has come: possibly none."""
        if self.stopped:
            return ""
        self.undecoded.append(token)
        piece = self.tokenizer.decode(self.undecoded)
        if piece.endswith(REPLACEMENT) and len(self.undecoded) < LONGEST_CHARACTER:
            return ""
        self.undecoded = []
        return self.release(piece)

    def finish(self) -> str:
        """The rest of the text, when no more tokens will come."""
        piece = "" if self.stopped else self.tokenizer.decode(self.undecoded)
        certain = self.release(piece)
        rest, self.held, self.undecoded = "" if self.stopped else self.held, "", []
        self.text += rest
        return certain + rest

    def release(self, piece: str) -> str:
        """Add decoded text; what of it is certain. Character by character, so that it does not matter how it is cut."""
        certain = ""
        for character in piece if not self.stopped else "":
            self.held += character
            found = [stop for stop in self.stops if self.held.endswith(stop)]
            if found:
                self.held = self.held[: -max(map(len, found))]
                self.stopped = True
            keep = 0 if self.stopped else self.uncertain()
            cut = len(self.held) - keep
            certain, self.held = certain + self.held[:cut], self.held[cut:]
            if self.stopped:
                break
        self.text += certain
        return certain

    def uncertain(self) -> int:
        """How many of the last characters held are the beginning of a stop string."""
        longest = min(len(self.held), max(map(len, self.stops), default=0))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self.held[-length:]) for stop in self.stops):
                return length
        return 0
