"""Background work that survives the end of the process.

The public names are loaded on first use (PEP 562): importing the package imports
neither asyncio, aiohttp nor sqlite3.
"""

from __future__ import annotations

# Type checkers know the name. Importing `typing` would cost as much as the rest.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from .client.api import HindsightClient
    from .delivery.writer import RetainWriter
    from .errors import (
        BadResponse,
        ConfigError,
        ExecutorClosed,
        HindsightExecError,
        OutboxCorrupt,
        OutboxError,
        OutboxFull,
        OutboxNewer,
        OutboxUnavailable,
        Rejected,
        ServerError,
        Starting,
        TranscriptError,
        Unauthorized,
        Unavailable,
    )
    from .executor import DrainingExecutor
    from .executor.signals import drain_on_signal
    from .outbox.store import Outbox
    from .settings.config import Settings

__version__ = "0.1.0"

# All other public names are those of `errors`.
_MODULES = {
    "DrainingExecutor": "executor",
    "HindsightClient": "client.api",
    "Outbox": "outbox.store",
    "RetainWriter": "delivery.writer",
    "Settings": "settings.config",
    "drain_on_signal": "executor.signals",
}

__all__ = [
    "BadResponse",
    "ConfigError",
    "DrainingExecutor",
    "ExecutorClosed",
    "HindsightClient",
    "HindsightExecError",
    "Outbox",
    "OutboxCorrupt",
    "OutboxError",
    "OutboxFull",
    "OutboxNewer",
    "OutboxUnavailable",
    "Rejected",
    "RetainWriter",
    "ServerError",
    "Settings",
    "Starting",
    "TranscriptError",
    "Unauthorized",
    "Unavailable",
    "__version__",
    "drain_on_signal",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - as late as what it is for

    value: object = getattr(import_module(f".{_MODULES.get(name, 'errors')}", __name__), name)
    globals()[name] = value  # the next lookup finds it there
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
