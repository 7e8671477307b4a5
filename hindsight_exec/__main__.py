"""`python -m hindsight_exec` is `hindsight-exec`."""

from __future__ import annotations

import sys

from hindsight_exec.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
