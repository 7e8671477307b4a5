"""`hermes hindsight_exec ...`: Hermes loads this file alone, by its path. See `__init__.py`."""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("hindsight_exec") is None:
    sys.path.append(str(Path(__file__).resolve().parent))

from hindsight_exec.hermes.cli import hindsight_exec_command, register_cli

__all__ = ["hindsight_exec_command", "register_cli"]
