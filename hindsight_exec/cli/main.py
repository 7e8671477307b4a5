"""The command line: reads the arguments, calls the command, and turns errors into one line."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from hindsight_exec.errors import (
    BadResponse,
    ConfigError,
    HindsightExecError,
    Unauthorized,
    Unavailable,
)

from .console import (
    INTERRUPTED,
    KEY_REFUSED,
    UNDONE,
    UNREACHABLE,
    USAGE,
    forgive_encoding,
    note,
)
from .parser import make_parser

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; `--help` and wrong arguments raise SystemExit."""
    forgive_encoding()
    argv = list(sys.argv[1:] if argv is None else argv)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("hindsight-exec: %(message)s"))
    logger = logging.getLogger("hindsight_exec")
    logger.addHandler(handler)
    try:
        args = make_parser(argv).parse_args(argv)
        status: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read us has gone. What is still buffered must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNDONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except HindsightExecError as error:
        note(str(error))
        return _status(error)
    except OSError as error:
        note(str(error))
        return UNDONE
    finally:
        logger.removeHandler(handler)
    return status


def _status(error: HindsightExecError) -> int:
    kinds = (
        (ConfigError, USAGE),
        (Unauthorized, KEY_REFUSED),
        ((Unavailable, BadResponse), UNREACHABLE),
    )
    return next((status for kind, status in kinds if isinstance(error, kind)), UNDONE)
