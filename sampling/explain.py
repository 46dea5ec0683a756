"""Why this token: the filters at work on each step's likeliest candidates, as a table."""

import sys

from torch import Tensor

from tokenizer import Tokenizer

CANDIDATES = 5  # rows of a table, at least


def explain(tokenizer: Tokenizer, stages: list[tuple[str, Tensor]], tokens: list[int]) -> None:
    """Print a table on stderr for the token that `sampler.generate` has sampled in its first row.

    A row per candidate, a column per filter with the probability after it, "-" where the filter rejected the token;
    the token sampled is marked and always listed.
    """
    columns = [logits[0].double().softmax(-1).tolist() for _name, logits in stages]
    likeliest = sorted(range(len(columns[0])), key=lambda token: -columns[0][token])[:CANDIDATES]
    print_row("\ntoken", [name for name, _logits in stages])  # a new line ends the text before it on a terminal
    for token in dict.fromkeys([*likeliest, *tokens]):
        cells = [f"{column[token]:.4f}" if column[token] else "-" for column in columns]
        print_row(repr(tokenizer.decode([token])), cells, " <- sampled" if token == tokens[0] else "")
    print_row("(candidates)", [str(sum(p > 0 for p in column)) for column in columns])


def print_row(name: str, cells: list[str], mark: str = "") -> None:
    """A row of the table: the token to the left, the numbers to the right."""
    print(f"{name:14}" + "".join(f"{cell:>13}" for cell in cells) + mark, file=sys.stderr)
