"""A Jupyter front end: a notebook's kernel gives turns, is restarted, gives more, is shut down."""

from __future__ import annotations

from jupyter_client import KernelManager

manager = KernelManager()
manager.start_kernel()
client = manager.client()
client.start_channels()


def run(code: str) -> None:
    client.wait_for_ready(timeout=60)
    reply = client.execute(code, reply=True, timeout=60)
    assert reply["content"]["status"] == "ok", reply


try:
    run("import giving; giving.give(30)")
    manager.restart_kernel()
    run("import giving; giving.give(30)")
finally:
    client.stop_channels()
    manager.shutdown_kernel()
