"""The command line: reads the arguments, calls the command, and turns errors into one line."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from hindsight_exec.errors import (
    BadResponse,
    ConfigError,
    HindsightExecError,
    Unauthorized,
    Unavailable,
)

from . import targets
from .console import (
    KEY_REFUSED,
    OK,
    UNDONE,
    UNREACHABLE,
    USAGE,
    finish_output,
    note,
    prepare_streams,
)
from .interrupts import Interrupted, handled
from .parser import make_parser

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None, *, program: str = "hindsight-exec") -> int:
    """Run a command and return its exit status.

    Args:
        argv: The arguments; those of the process without it.
        program: What the user typed to get here. Advice names commands of this program.
    """
    prepare_streams()
    argv = list(sys.argv[1:] if argv is None else argv)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("hindsight-exec: %(message)s"))
    logger = logging.getLogger("hindsight_exec")
    logger.addHandler(handler)
    try:
        with handled():
            status = _run(argv, program)
    finally:
        logger.removeHandler(handler)
    written = finish_output()
    return status or (OK if written else UNDONE)


def _run(argv: list[str], program: str) -> int:
    try:
        args = make_parser(argv, program).parse_args(argv)
        targets.called_as(program, getattr(args, "state", None))
        return int(args.run(args))
    except SystemExit as end:  # argparse: --help, --version, wrong arguments
        return int(end.code or OK)
    except KeyboardInterrupt as end:
        return end.status if isinstance(end, Interrupted) else Interrupted().status
    except BrokenPipeError:
        return UNDONE
    except ModuleNotFoundError as error:  # installed without its dependencies
        note(f"{error}; run '{sys.executable} -m pip install {error.name}'")
        return UNDONE
    except (HindsightExecError, OSError) as error:
        note(str(error))
        return _status(error)


def _status(error: Exception) -> int:
    kinds = (
        (ConfigError, USAGE),
        (Unauthorized, KEY_REFUSED),
        ((Unavailable, BadResponse), UNREACHABLE),
    )
    return next((status for kind, status in kinds if isinstance(error, kind)), UNDONE)
