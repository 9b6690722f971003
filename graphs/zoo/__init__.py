"""The zoo: workloads of the field, each an ordinary PyTorch module in a file of its own."""
