"""The search by moves that walks in parallel with the policy."""
