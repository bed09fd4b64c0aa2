"""Keeps the drafter close to a moving policy: module, objective, checkpoint."""
