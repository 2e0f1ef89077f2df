"""Methods for policies: reinforcement learning, driving, hands."""
