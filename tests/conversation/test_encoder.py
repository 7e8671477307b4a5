"""JSON is that of the standard library, however the encoder is made."""

from __future__ import annotations

import json
import math
import random
from typing import Any, Callable

import pytest

from hindsight_exec.conversation import encoder

STRINGS = ["", "plain", 'quoted "\\/\n\t', "ü\u2028\U0001f600", "\x00\x1f\x7f", "\ud800"]


def value(draw: random.Random, depth: int = 0) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: draw.choice(STRINGS),
        lambda: draw.choice([None, True, False, 0, -1, 10**30, 0.1, 1e300, -0.0]),
    ]
    if depth < 4:
        kinds += [
            lambda: [value(draw, depth + 1) for _ in range(draw.randrange(4))],
            lambda: (value(draw, depth + 1),),
            lambda: {
                draw.choice([*STRINGS, 1, 2.5, True, None]): value(draw, depth + 1)
                for _ in range(draw.randrange(4))
            },
        ]
    return draw.choice(kinds)()


def test_json_is_the_standard_librarys() -> None:
    """Any value gives the text that `json.dumps` gives."""
    draw = random.Random(17)
    for _ in range(3000):
        given = value(draw)
        assert encoder.to_json(given) == json.dumps(given, ensure_ascii=False)


def circular() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


@pytest.mark.parametrize("wrong", [math.nan, math.inf, object(), {(1,): 2}, b"x", circular()])
def test_what_is_no_json_is_refused(wrong: Any) -> None:
    """NaN, objects and circles raise what callers catch."""
    with pytest.raises((TypeError, ValueError, RecursionError)):
        encoder.to_json([wrong])


def test_a_failed_value_leaves_no_trace() -> None:
    """The encoder that all calls share works after an error in the midst of a value."""
    with pytest.raises(TypeError):
        encoder.to_json({"a": [1, {"b": object()}]})
    assert encoder.to_json({"a": [1, {"b": 2}]}) == '{"a": [1, {"b": 2}]}'


def test_without_an_encoder_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the standard library has none (PyPy), its own `encode` makes the same text."""
    monkeypatch.setattr(json.encoder, "c_make_encoder", None)
    assert encoder._make()({"ü": [1, None]}) == '{"ü": [1, null]}'
