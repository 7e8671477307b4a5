"""A system that can be written nowhere but in the state directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from filling import OPEN

from hindsight_exec.outbox.store import Outbox

# Makes every mount read-only in a namespace of its own, but for the folder in $1; runs the rest.
READ_ONLY = """\
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
for mount in $(awk '{print $2}' /proc/mounts | sort -r); do
    case $mount in "$1"*|/proc*|/sys*|/dev/pts*) continue;; esac
    mount -o remount,bind,ro "$mount" 2>/dev/null || true
done
cd /
if touch /tmp/probe /var/tmp/probe "$HOME/probe" 2>/dev/null; then exit 77; fi
shift
exec "$@"
"""


def test_a_read_only_system(path: Path) -> None:
    """Turns of many megabytes are taken, listed, vacuumed and erased without temporary files."""
    if sys.platform != "linux" or os.getuid() or not shutil.which("unshare"):
        pytest.skip("needs root, and namespaces of Linux")
    program = OPEN + (
        "for number in range(30):\n"
        "    held = outbox.put(source(), turn(number, 'x' * 300_000))\n"
        "batch = batch_of(outbox, close_all(outbox, held))\n"
        "assert len(outbox.entries()) == 30\n"
        "outbox.complete(batch)\n"
        "outbox.vacuum()\n"
        "outbox.put(source(), turn(30))\n"
        "outbox.put(source('other'), turn(31))\n"
        "assert outbox.purge('other') == 1\n"
    )
    command = ["unshare", "-m", "sh", "-c", READ_ONLY, "sh", str(path.parent)]
    probe = subprocess.run([*command, "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("cannot make a namespace with read-only mounts")
    place = str(Path(__file__).parent.parent)
    subprocess.run(
        [*command, sys.executable, "-c", program, str(path)],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([place, *sys.path])},
    )
    with closing(Outbox(path)) as outbox:
        assert outbox.summary().held == 1
    assert path.stat().st_size < 100_000
