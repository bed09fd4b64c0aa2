"""Hypothesis on a shared machine: no deadline for one example, and few enough of them."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("respec", deadline=None, max_examples=60)
settings.load_profile("respec")
