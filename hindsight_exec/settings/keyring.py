"""API keys that only this process holds: a program or a host handed them over. Never on disk."""

from __future__ import annotations

import hashlib
from typing import Dict, NamedTuple, Optional, Tuple

__all__ = ["Handed", "recall", "reference", "remember"]


class Handed(NamedTuple):
    """A key, and the one that the profile's ``.env`` named at that time."""

    key: str
    in_dotenv: str


# By (reference, URL): a key goes to no other server. Single dict operations: safe from any thread.
_keys: Dict[Tuple[str, str], Handed] = {}


def remember(reference: str, url: str, key: str, in_dotenv: str = "") -> None:
    _keys[reference, url] = Handed(key, in_dotenv)


def recall(reference: str, url: str) -> Optional[Handed]:
    return _keys.get((reference, url))


def reference(url: str, key: str) -> str:
    """Return the reference that stands for this very key."""
    # 32 bits tell a user's keys apart and are useless for finding the key.
    return "given:" + hashlib.sha256(f"{url}\0{key}".encode("utf-8", "replace")).hexdigest()[:8]
