"""Green threads: `patched.py LIBRARY WHEN`, patched before or after hindsight_exec is imported."""

from __future__ import annotations

import importlib
import sys

library, when = sys.argv[1:]
green = importlib.import_module(library)


def patch() -> None:
    if library == "gevent":
        importlib.import_module("gevent.monkey").patch_all()
    else:
        green.monkey_patch()


if when == "before":
    patch()
importlib.import_module("hindsight_exec").RetainWriter  # noqa: B018 - the look-up imports
if when == "after":
    patch()
giving = importlib.import_module("giving")
giving.give(10)
spawned = [green.spawn(giving.give, 10) for _ in range(2)]
for one in spawned:
    one.get() if library == "gevent" else one.wait()
