"""Parts of the fidelity study: its workloads and its report."""
