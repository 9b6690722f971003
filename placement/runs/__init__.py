"""Training runs: one orchestration, the run directory, and what is recorded there."""
