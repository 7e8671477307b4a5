"""Whatever is broken on our side, the program's exit status and its last words are its own."""

from __future__ import annotations

import textwrap

import pytest
from serving import free_port

BROKEN = {
    "the folder is removed": "shutil.rmtree(state)",
    "the file is overwritten": """
        for path in state.glob("*.db"):
            path.write_bytes(b"not SQLite" * 1000)""",
    "the database is closed": "writer._engine.intake._own.outbox.close()",
    "delivery fails": "Delivery._pass = fail",
    "the files cannot be closed": "Outbox.close = Outbox.summary = fail",
    "exit callbacks fail": "call_at_exit(fail)\n        call_at_exit(fail, DRAIN)",
    "the bound's callback fails": "writer._engine.delivery.cancel = fail",
    "what is told of trouble fails": "writer.on_trouble = fail",
    "the worker is gone": "threading.Thread.start = fail",
}


@pytest.mark.parametrize("ending, status", [("pass", 0), ("sys.exit(7)", 7)])
@pytest.mark.parametrize("broken", BROKEN)
def test_exit_status_stays_the_programs(run, tmp_path, broken, ending, status):
    """It ends with the status it gave, without a traceback that is not logged by us."""
    program = f"""
        import logging, shutil, sys, threading
        from pathlib import Path
        from hindsight_exec import RetainWriter, Settings
        from hindsight_exec.delivery.worker import Delivery
        from hindsight_exec.executor import DRAIN, call_at_exit
        from hindsight_exec.outbox.store import Outbox

        logging.getLogger("hindsight_exec").addHandler(logging.NullHandler())
        logging.getLogger("hindsight_exec").propagate = False
        state = Path(sys.argv[1])

        def fail(*args, **keywords):
            raise RuntimeError("broken")

        settings = Settings(
            api_url="http://127.0.0.1:{free_port()}", bank_id="b", drain_timeout=0.3
        )
        writer = RetainWriter(settings, state=state)
        writer.put([{{"role": "user", "content": "one"}}], session="s", immediate=True)
        {BROKEN[broken]}
        say("over")
        {ending}
        """
    ended = run(textwrap.dedent(program), str(tmp_path / "state"))
    assert ended == (status, "over\n", "")
