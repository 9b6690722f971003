"""Regions that PyTorch's compiler (inductor) compiles: which ops of a region go together, and their code."""
