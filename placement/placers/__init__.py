"""The placers: one a file, all ``place(problem, *, budget, rng) -> Placed``."""
