"""Why this token: the filters at work on each step's likeliest candidates, as a table."""

import sys
from typing import TextIO

from torch import Tensor

from sampling.output import Output
from sampling.score import shown_token

CANDIDATES = 5  # rows of a table, at least


class Explainer:
    """To be given to `sampler.generate` as `watch`: prints one table per token of the first row.

    A row per candidate, a column per filter with the probability after it, "-" where the filter rejected the token;
    the token sampled is marked and always listed.
    """

    def __init__(self, tokenizer, file: TextIO | None = None, output: Output | None = None):
        """file: where the tables go, stderr if None. output: where the text goes meanwhile."""
        self.tokenizer = tokenizer
        self.file = file
        self.output = output
        self.number = 0

    def __call__(self, stages: list[tuple[str, Tensor]], chosen: list[int]) -> None:
        self.number += 1
        columns = {name: logits[0].double().softmax(-1).tolist() for name, logits in stages}
        model = columns["model"]
        shown = sorted(range(len(model)), key=lambda token: -model[token])[:CANDIDATES]
        if chosen[0] not in shown:
            shown.append(chosen[0])
        lines = [["token", *columns]]
        for token in shown:
            cells = [f"{p[token]:.4f}" if p[token] else "-" for p in columns.values()]
            lines.append([shown_token(self.tokenizer, token), *cells])
        left = [str(sum(p > 0 for p in probabilities)) for probabilities in columns.values()]
        lines.append(["(candidates)", *left])
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        if self.output:
            self.output.end_line()
        print(f"token {self.number}", file=self.file or sys.stderr)
        for token, line in zip([None, *shown, None], lines, strict=True):
            name, *numbers = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            mark = " <- sampled" if token == chosen[0] else ""
            print(f"  {name.strip().ljust(widths[0])}  {'  '.join(numbers)}{mark}", file=self.file or sys.stderr)
