"""`hindsight-exec completion`: what a shell needs to complete the arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hindsight_exec.errors import ConfigError

from .console import OK, say
from .parser import make_parser

if TYPE_CHECKING:
    import argparse


def run(args: argparse.Namespace) -> int:
    try:
        import shtab  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError(
            "completion needs shtab: install 'hindsight-exec[cli]', or shtab beside it"
        ) from None
    if args.shell not in shtab.SUPPORTED_SHELLS:
        known = ", ".join(shtab.SUPPORTED_SHELLS)
        raise ConfigError(f"no completion for {args.shell!r}: one of {known}")
    say(shtab.complete(make_parser(["completion"]), args.shell))
    return OK
