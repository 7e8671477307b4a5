"""The Hermes memory provider: everything that knows of Hermes, and nothing that delivers.

Hermes finds the provider through the entry point ``hermes_agent.memory_providers``,
or through the folder that ``hindsight-exec hermes install`` writes, and calls
``register(ctx)``, which hands it over with ``ctx.register_memory_provider``.
Importing this package is cheap, and needs no Hermes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .provider import HindsightMemoryProvider

__all__ = ["HindsightMemoryProvider", "register"]


def register(ctx: Any) -> None:
    """Entry point of the plugin: hands a new provider to Hermes' ``ctx``."""
    # Hermes 0.19 also calls this for general plugins, whose ctx takes no provider.
    add = getattr(ctx, "register_memory_provider", None)
    if add is not None:
        from .provider import HindsightMemoryProvider  # noqa: PLC0415 - only when needed

        add(HindsightMemoryProvider())


def __getattr__(name: str) -> Any:
    if name == "HindsightMemoryProvider":
        from .provider import HindsightMemoryProvider  # noqa: PLC0415 - only when needed

        return HindsightMemoryProvider
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
