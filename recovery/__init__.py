"""What keeps a run alive: the journal, the checkpoints and the lease on a run directory."""
