"""The settings in Hermes' desktop: Hermes loads this file alone, by its path. See `__init__.py`."""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("hindsight_exec") is None:
    sys.path.append(str(Path(__file__).resolve().parent))

from hindsight_exec.hermes.config_schema import CONFIG_SCHEMA

__all__ = ["CONFIG_SCHEMA"]
