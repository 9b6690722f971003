"""Runnable files for people in a clone: benchmarks and reproductions; not installed."""
