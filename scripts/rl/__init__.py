"""Reinforcement learning end to end: a small GRPO loop around a server and the learner."""
