"""The nine agents of phase 6. Each does one kind of work of `phases.baking` on the files of the run."""
