"""A Celery application with a broker of files; the worker queues its tasks when it is ready."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import celery
import celery.signals
import giving

folder = os.environ["FOLDER"]
app = celery.Celery(
    broker="filesystem://",
    broker_transport_options={
        "data_folder_in": f"{folder}/broker",
        "data_folder_out": f"{folder}/broker",
        "control_folder": f"{folder}/control",
        "polling_interval": 0.05,
    },
)
for name in ("broker", "control"):
    Path(folder, name).mkdir(exist_ok=True)


@app.task
def give() -> None:
    giving.give()


@celery.signals.worker_ready.connect
def queue(**_: Any) -> None:
    for _ in range(int(os.environ["TURNS_OF_A_PROCESS"])):
        give.delay()


if giving.has_line:
    celery.signals.worker_process_shutdown.connect(lambda **_: giving.writer.close(5), weak=False)
giving.give()
