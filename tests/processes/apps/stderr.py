"""A standard error that cannot be written: `stderr.py HOW`; exit has a line to say (DRAIN is 0)."""

from __future__ import annotations

import io
import sys

import giving


class Broken(io.StringIO):
    def write(self, _text: str) -> int:
        raise OSError("no such terminal")


giving.give(30)
how = sys.argv[1]
if how == "none":
    sys.stderr = None
elif how == "closed":
    sys.stderr.close()
elif how == "broken":
    sys.stderr = Broken()
