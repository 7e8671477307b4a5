"""`hindsight-exec completion`: print the script with which a shell completes arguments."""

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
        raise ConfigError("completion needs shtab; run pip install shtab") from None
    if args.shell not in shtab.SUPPORTED_SHELLS:
        known = ", ".join(shtab.SUPPORTED_SHELLS)
        raise ConfigError(f"unknown shell {args.shell!r} (expected one of {known})")
    say(shtab.complete(make_parser(["completion"]), args.shell))
    return OK
