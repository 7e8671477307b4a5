"""A callback that keeps nobody alive."""

from __future__ import annotations

import weakref
from typing import Callable

__all__ = ["weakly"]


def weakly(method: Callable[[str], None]) -> Callable[[str], None]:
    """Call the method only while its object lives: some hosts drop providers without a shutdown."""
    reference = weakref.WeakMethod(method)

    def call(text: str) -> None:
        alive = reference()
        if alive is not None:
            alive(text)

    return call
