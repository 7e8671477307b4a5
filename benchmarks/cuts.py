"""How many LLM calls other cuts would make of the same conversations, by the server's rule.

Computed, not measured: Hindsight 1.1.0 fills chunks of 3000 characters with whole messages, one
after the other, and asks its LLM once a chunk (`extraction` measures it). Ours cuts as turns come.
The others know the whole conversation: the best cuts into documents of at most twice or three times
a chunk, which hold turns longer, and all of it as one document, which holds them to the end. No cut
makes less than all characters in chunks that are full.
"""

from __future__ import annotations

import random
from typing import Sequence

from hindsight_exec.conversation.turns import turn
from hindsight_exec.delivery.schedule import CHUNK, Hold, chunks, first_document

from .measure import OURS, Result, rows, versions

Talk = Sequence[Sequence[int]]  # the sizes of each turn's messages

#: Those of `extraction`: turns, and the characters that user and assistant say in one.
TURNS = 100
TALKS = {"long turns": (600, 900), "short turns": (80, 220)}

#: Conversations with messages of varied lengths: medians of user and assistant, and how they vary.
VARIED = {"short": (80, 220, 0.8), "medium": (150, 650, 0.9), "long": (400, 1500, 0.8)}
_TALKS_EACH = 20
ONE, FULL = "one document", "full chunks (no cut can)"


def as_they_come(talk: Talk) -> tuple[int, float]:
    """LLM calls of our cuts, and how many turns were held after a turn, on average."""
    held: list[Sequence[int]] = []
    calls = waited = 0
    for number, sizes in enumerate(talk, 1):
        held.append(sizes)
        while count := first_document(held, Hold(), ended=number == len(talk)):
            calls += chunks(held[:count])
            del held[:count]
        waited += len(held)
    return calls, waited / len(talk)


def best(talk: Talk, most: int) -> int:
    """The fewest LLM calls of any cut into documents of at most so many characters."""
    fewest = [0] + [10**9] * len(talk)
    for start in range(len(talk)):
        chars = 0
        for end in range(start + 1, len(talk) + 1):
            chars += sum(talk[end - 1])
            if chars > most and end > start + 1:
                break
            fewest[end] = min(fewest[end], fewest[start] + chunks(talk[start:end]))
    return fewest[-1]


def _sizes(user: int, assistant: int) -> Sequence[int]:
    texts = {"user": "User: " + "x" * user, "assistant": "Assistant: " + "x" * assistant}
    said = [{"role": role, "content": text} for role, text in texts.items()]
    return turn(said, given_at=1, index=1).sizes


def _talks() -> dict[str, list[Talk]]:
    talks: dict[str, list[Talk]] = {
        f"{name} of one size": [[_sizes(user, assistant)] * TURNS]
        for name, (user, assistant) in TALKS.items()
    }
    draw = random.Random(17)
    for name, (user, assistant, sigma) in VARIED.items():
        talks[f"{name} turns, varied"] = [
            [
                _sizes(
                    *(int(middle * draw.lognormvariate(0, sigma)) for middle in (user, assistant))
                )
                for _ in range(TURNS)
            ]
            for _ in range(_TALKS_EACH)
        ]
    return talks


def run(*, rounds: int = 1) -> Result:
    """The same each time, so that there is one round."""
    del rounds
    taken: dict[str, dict[str, float]] = {}
    for line, talks in _talks().items():
        peers = {
            ONE: [chunks(talk) for talk in talks],
            OURS: [as_they_come(talk)[0] for talk in talks],
            "best documents of 6000": [best(talk, 2 * CHUNK) for talk in talks],
            "best documents of 9000": [best(talk, 3 * CHUNK) for talk in talks],
            FULL: [sum(map(sum, talk)) / CHUNK for talk in talks],
        }
        for name, calls in peers.items():
            taken.setdefault(name, {})[line] = sum(calls) / len(talks)
        held = [as_they_come(talk)[1] for talk in talks]
        taken[OURS][f"{line}: turns held"] = sum(held) / len(talks)
    every = rows({name: [figures] for name, figures in taken.items()}, ONE, taken[OURS])
    result = Result(
        "cuts",
        "LLM calls for 100 turns, by where they are cut (computed)",
        "calls",
        ONE,
        every,
        rounds=1,
        versions=versions(),
    )
    for line in taken[ONE]:
        result.aim("at most a tenth above one document", line, 1.1)
    return result
