"""A set of objects that it does not keep alive."""

from __future__ import annotations

import weakref

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any


class WeakObjects:
    """Some objects, as long as others refer to them. Safe from any thread and finalizer.

    ``weakref.WeakSet`` is not: an object that ends on another thread, just as
    an iteration begins, makes that raise RuntimeError (measured on 3.9 and on
    3.13 without the GIL). Here all is done by single operations of a set.
    """

    def __init__(self) -> None:
        self._references: set[weakref.ref[Any]] = set()

    def add(self, one: object) -> None:
        self._references.add(weakref.ref(one, self._references.discard))

    def discard(self, one: object) -> None:
        self._references.discard(weakref.ref(one))

    def all(self) -> list[Any]:
        """The objects, which live until the caller drops the list."""
        found = [reference() for reference in self._references.copy()]
        return [one for one in found if one is not None]

    def __len__(self) -> int:
        return len(self._references)
