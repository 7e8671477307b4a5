"""Attributes of the bundled provider that other code reads, and a weak callback."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Callable, Optional

if TYPE_CHECKING:
    from hindsight_exec.delivery.writer import RetainWriter

__all__ = ["DeliveryQueue", "weakly"]


class DeliveryQueue:
    """The part of the bundled provider's queue that other code uses."""

    def __init__(self, writer: Optional[RetainWriter]) -> None:
        self._writer = writer

    def join(self) -> None:
        """Wait until the server has accepted every turn given so far."""
        if self._writer is not None:
            self._writer.flush()

    def qsize(self) -> int:
        """Return the number of turns that the server has not accepted yet."""
        return self._writer.counters().waiting if self._writer is not None else 0

    def empty(self) -> bool:
        return not self.qsize()


def weakly(method: Callable[[str], None]) -> Callable[[str], None]:
    """Call the method only while its object lives: some hosts drop providers without a shutdown."""
    reference = weakref.WeakMethod(method)

    def call(text: str) -> None:
        alive = reference()
        if alive is not None:
            alive(text)

    return call
