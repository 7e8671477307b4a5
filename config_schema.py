"""The desktop panel's keys where the repository is a Hermes plugin; Hermes imports it alone."""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("hindsight_exec") is None:  # not installed with pip: it stands beside
    sys.path.append(str(Path(__file__).parent))

from hindsight_exec.hermes.config_schema import CONFIG_SCHEMA

__all__ = ["CONFIG_SCHEMA"]
