"""Tests against the real Hindsight server; `python -m tests.hindsight.server` starts one by hand."""
