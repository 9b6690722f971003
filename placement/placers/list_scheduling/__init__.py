"""List schedulers over ops or groups: HEFT, PEFT, ETF and their kernels."""
