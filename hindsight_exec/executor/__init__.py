"""Background work that is finished at exit, within a bound."""

from __future__ import annotations

from hindsight_exec.executor.phases import CLOSE, DRAIN, SERVE, call_at_exit
from hindsight_exec.executor.pool import DrainingExecutor

__all__ = ["CLOSE", "DRAIN", "SERVE", "DrainingExecutor", "call_at_exit"]
