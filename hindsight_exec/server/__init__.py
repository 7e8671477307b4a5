"""A Hindsight-compatible server in one process and one file, for trials, tests and offline work.

It has no LLM. It answers the requests of Hindsight 1.1.0 that a client needs to
retain, follow operations, read documents and recall. It stores documents and finds them by their
words (SQLite FTS5, bm25). It extracts no facts, consolidates no observations and does not reflect.

Everything is in one SQLite file, which one server uses at a time. An acknowledged retain survives
SIGKILL and power loss, and is stored once.
"""

from __future__ import annotations

from .app import API_VERSION, NOTICE, EmbeddedServer, create_app

__all__ = ["API_VERSION", "NOTICE", "EmbeddedServer", "create_app"]
