"""However the process ends and whatever the server does: nothing lost, nothing twice, no noise."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from exit import matrix

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals"),
]


@pytest.mark.timeout(600)
def test_pairwise() -> None:
    """Every pair of end, kind of server, host and number of turns, with a bound of a second."""
    failed = [row for row in matrix.run_all(matrix.pairwise()) if matrix.failed(row)]
    assert not failed, "\n".join(map(str, failed))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_whole(tmp_path: Path) -> None:
    """Every end with every server, host and number of turns."""
    failed = matrix.main(str(tmp_path))
    assert not failed, "\n".join(map(str, failed))
