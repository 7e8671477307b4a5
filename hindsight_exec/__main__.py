"""`python -m hindsight_exec` is `hindsight-exec`, and so is `python FOLDER_OF_THE_PACKAGE`.

The second form needs no installation: schedulers use it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    # Last, where the package itself lies among others: none may stand in for the library's.
    sys.path[:] = [*sys.path[1:], str(Path(__file__).absolute().parent.parent)]

from hindsight_exec.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
