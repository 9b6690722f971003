"""Pipelines: a chain of stages on devices, micro-batches that go through it, and the strict lists that devices run."""
