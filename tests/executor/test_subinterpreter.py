"""An executor of a subinterpreter drains when that is destroyed."""

from __future__ import annotations

import sys

import pytest

PROGRAM = """
inside = (
    "import os\\n"
    "def say(n):\\n"
    "    os.write(1, b'job %d\\\\n' % n)\\n"
    "from hindsight_exec import DrainingExecutor\\n"
    "executor = DrainingExecutor()\\n"
    "for n in range(20):\\n"
    "    executor.submit(say, n)\\n"
)
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
interpreter = interpreters.create()
run = getattr(interpreters, "exec", None) or interpreters.run_string
failed = run(interpreter, inside)
interpreters.destroy(interpreter)
say("destroyed", failed)
"""


@pytest.mark.skipif(
    sys.implementation.name != "cpython" or sys.version_info < (3, 12),
    reason="one that has started a thread, of whichever executor, cannot be destroyed before 3.12",
)
def test_destroyed(run):
    """The jobs it was given are done before its end."""
    ended = run(PROGRAM)
    assert ended == (0, "".join(f"job {n}\n" for n in range(20)) + "destroyed None\n", "")
