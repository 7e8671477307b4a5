"""An executor of a subinterpreter drains when that is destroyed."""

from __future__ import annotations

import pytest

PROGRAM = """
import sys
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
# Isolated ones may start no threads before 3.12, whichever executor it is.
options = {"isolated": False} if sys.version_info < (3, 12) else {}
interpreter = interpreters.create(**options)
run = getattr(interpreters, "exec", None) or interpreters.run_string
failed = run(interpreter, inside)
interpreters.destroy(interpreter)
say("destroyed", failed)
"""


def test_destroyed(run):
    """The jobs it was given are done before its end."""
    try:
        import _interpreters  # noqa: F401
    except ImportError:
        pytest.importorskip("_xxsubinterpreters", reason="no subinterpreters on this Python")
    ended = run(PROGRAM)
    assert ended == (0, "".join(f"job {n}\n" for n in range(20)) + "destroyed None\n", "")
