"""Measured execution: a placement's steps run on real devices of this machine. Only the worker processes load torch."""
