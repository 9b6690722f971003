"""The learned placer: the policy, REINFORCE, and the trainer."""
