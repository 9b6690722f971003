"""Placers, learned and not; training, results, comparison, and the command `placement`."""
