"""The repository as a Hermes plugin: what ``hermes plugins install`` clones runs as it stands.

Hermes calls ``register``, which hands it the provider with ``register_memory_provider``.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("hindsight_exec") is None:  # not installed with pip: it stands beside
    sys.path.append(str(Path(__file__).parent))

from hindsight_exec.hermes import register

__all__ = ["register"]
