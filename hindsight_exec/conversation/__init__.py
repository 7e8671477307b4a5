"""Turns and transcripts: pure functions and types, no threads, disk or network."""
