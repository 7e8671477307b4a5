"""Background work that survives the end of the process.

The public names are handed on lazily (PEP 562): importing the package imports
neither asyncio, aiohttp nor sqlite3.
"""

from __future__ import annotations

# Type checkers know the name; to import `typing` would cost as much as the rest.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from .client.api import HindsightClient
    from .delivery.writer import RetainWriter
    from .errors import ExecutorClosed
    from .executor import DrainingExecutor
    from .outbox.store import Outbox
    from .settings.config import Settings

__version__ = "0.1.0"

_MODULES = {
    "DrainingExecutor": "executor",
    "ExecutorClosed": "errors",
    "HindsightClient": "client.api",
    "Outbox": "outbox.store",
    "RetainWriter": "delivery.writer",
    "Settings": "settings.config",
}

__all__ = [
    "DrainingExecutor",
    "ExecutorClosed",
    "HindsightClient",
    "Outbox",
    "RetainWriter",
    "Settings",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - as late as what it is for

    value: object = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
