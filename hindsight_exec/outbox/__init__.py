"""What is on disk: turns, documents, batches and dead letters."""
