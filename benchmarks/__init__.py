"""Measurements against what people use today: ``python -m benchmarks``."""

import sys
from pathlib import Path

# The server of the tests, which `extraction` measures, imports what stands beside their rooms.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
