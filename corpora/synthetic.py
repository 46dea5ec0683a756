"""Play-like text from a small probabilistic grammar, with its exact probability.

Wherever the grammar chooses, no option is the beginning of another, so a reader can tell from the characters alone
which option was taken: the text has one derivation, and its probability is the product of the choices' probabilities.
That gives the exact negative log-likelihood of every character. Their mean is a lower bound for the loss of every
model: a model that gets below it has seen the answers.
"""

from bisect import bisect
from collections import Counter
from itertools import accumulate
from math import log

import numpy as np

SPEAKERS = ("ORLA", "BERTRAM", "THE FOOL", "KING HALE", "MIRABEL", "FIRST GUARD", "SECOND GUARD", "DUKE")
WORDS = {
    "NOUN": """king crown night sword heart moon storm ship ring song bell ghost hour oath wolf star hand sea wind
        rose fire queen child letter throne river candle garden shadow prince sorrow mirror winter thief
        lord name""".split(),
    "QUALITY": """pale sweet old bitter bold golden weary silent dark crooked honest cold noble hollow tender proud foul
        merry wild gentle poor mad""".split(),
    "DEED": """waits sleeps burns falls weeps wanders trembles returns fades speaks sinks sings dies rises laughs
        breaks turns stays""".split(),
    "ACT": """guard forget carry praise follow mourn betray deliver summon bury love fear hide curse mock seek kiss
        hear""".split(),
    "PLACE": "castle harbour chapel market forest tower field orchard hall gate crypt cliff moor bridge".split(),
}
# A sentence is literal text with slots; the openings (up to the first slot) tell the sentences apart.
SENTENCES = (
    (5, "The {QUALITY} {NOUN} {DEED} in the {PLACE}.\n"),
    (5, "I {ACT} the {QUALITY} {NOUN}, and the {NOUN} {DEED}.\n"),
    (4, "What {QUALITY} {NOUN} {DEED} by the {PLACE}?\n"),
    (4, "My {QUALITY} {NOUN}, {ACT} your {NOUN}!\n"),
    (3, "No {NOUN} so {QUALITY} ever {DEED}, nor will it {ACT} a {NOUN}.\n"),
    (3, "Go to the {PLACE}, {ACT} a {NOUN} and {ACT} the {QUALITY} {NOUN}.\n"),
    (1, "Alas!\n"),
)
SPEECH_ENDS = 10  # the weight of ending a speech after a sentence, beside the sentences' weights above


class Choice:
    """A set of weighted strings, none the beginning of another, to sample from and to score.

    nats[i][k] is the negative log-probability of character k of option i, given the characters before it.
    """

    def __init__(self, options: list[str], weights: list[float]):
        self.options = options
        self.cumulative = list(accumulate(weights))
        mass = Counter()  # total weight of the options that begin so
        for option, weight in zip(options, weights, strict=True):
            for end in range(len(option) + 1):
                mass[option[:end]] += weight
        if any(a != b and a.startswith(b) for a in options for b in options):
            raise ValueError("an option begins another one: the grammar would be ambiguous, and its floor wrong")
        self.nats = [[log(mass[o[:end]] / mass[o[: end + 1]]) for end in range(len(o))] for o in options]

    def sample(self, uniform: float) -> int:
        """The option that a uniform number from [0, 1) falls on."""
        return bisect(self.cumulative, uniform * self.cumulative[-1])


def rank_weights(count: int) -> list[float]:
    """Weights 1, 1/√2, 1/√3, …: as in real text, the first words of a list do more of the work."""
    return [rank**-0.5 for rank in range(1, count + 1)]


def compile_sentence(template: str) -> tuple[str, list[Choice]]:
    """A template as its opening literal and the choices after it, each word joined with the literal that follows."""
    opening, *slots = template.split("{")
    pairs = [slot.split("}") for slot in slots]
    return opening, [Choice([w + after for w in WORDS[kind]], rank_weights(len(WORDS[kind]))) for kind, after in pairs]


def synthetic_text(length: int, seed: int = 0) -> tuple[str, np.ndarray]:
    """`length` characters of play-like text and each one's exact negative log-likelihood in nats (length,).

    The first speaker is sampled from all speakers, every other from those who did not speak last.
    """
    random = np.random.default_rng(seed)
    text, nats = [], []

    def emit(choice: Choice) -> int:
        index = choice.sample(random.random())
        text.append(choice.options[index])
        nats.extend(choice.nats[index])
        return index

    cues = [name + ":\n" for name in SPEAKERS]
    shares = rank_weights(len(cues))
    anyone = Choice(cues, shares)
    others = [Choice(cues[:i] + cues[i + 1 :], shares[:i] + shares[i + 1 :]) for i in range(len(cues))]
    weights = [float(weight) for weight, _ in SENTENCES]
    openings, bodies = zip(*(compile_sentence(template) for _, template in SENTENCES), strict=True)
    first_sentence = Choice(list(openings), weights)
    next_sentence = Choice([*openings, "\n"], [*weights, float(SPEECH_ENDS)])

    speaker = emit(anyone)
    while len(nats) < length:
        sentence = emit(first_sentence)
        while sentence < len(bodies):  # the option after the last sentence ends the speech
            for choice in bodies[sentence]:
                emit(choice)
            sentence = emit(next_sentence)
        index = emit(others[speaker])
        speaker = index + (index >= speaker)
    return "".join(text)[:length], np.array(nats[:length])
