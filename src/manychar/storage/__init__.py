"""Everything that is on disk: run directory, checkpoints, journal, corpus, logs, recovery."""
