"""API keys that only this process holds: a program or a host handed them over. Never on disk."""

from __future__ import annotations

import hashlib
from typing import Dict, Optional, Tuple

__all__ = ["recall", "reference", "remember"]

# By (reference, URL): a key goes to no other server. Single dict operations: safe from any thread.
_keys: Dict[Tuple[str, str], str] = {}


def remember(reference: str, url: str, key: str) -> None:
    _keys[reference, url] = key


def recall(reference: str, url: str) -> Optional[str]:
    return _keys.get((reference, url))


def reference(url: str, key: str) -> str:
    """Return the reference that stands for this very key."""
    # 32 bits tell a user's keys apart and are useless for finding the key.
    return "given:" + hashlib.sha256(f"{url}\0{key}".encode("utf-8", "replace")).hexdigest()[:8]
