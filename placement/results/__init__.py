"""Results: placement files, comparisons, simulated steps and their pictures."""
