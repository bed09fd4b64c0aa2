"""What serves, as far as the learner knows: the version, and a copy of the weights to judge by."""

import copy

import torch
from safetensors.torch import load_file

from sglang_respec.learner.checkpoint import drafter_tensors
from sglang_respec.learner.eagle3 import Eagle3Drafter
from sglang_respec.learner.publisher import Serving
from sglang_respec.learner.store import CheckpointStore


class Baseline:
    """The serving drafter. Starts as the one the server was started with.

    Where another pusher's weights serve they cannot be had, since servers do not give weights
    out: the copy stays the last one known (``known`` is false), the push goes out on the version
    that serves, and the server's own guard compares the two.
    """

    def __init__(
        self, first: Eagle3Drafter, serving: Serving, reference_length: float | None = None
    ) -> None:
        self._first = copy.deepcopy(first).eval().requires_grad_(False)
        self._twin = copy.deepcopy(self._first)
        self.drafter = copy.deepcopy(self._first)
        self.serving = serving
        self.reference_length = reference_length
        self.known = serving.sha256 == ""
        self._refused: set[str] = set()

    def reference(self, measured: float) -> float:
        """What the serving drafter accepted when it began to serve: its first measurement."""
        if self.reference_length is None:
            self.reference_length = measured
        return self.reference_length

    @torch.no_grad()
    def rounded(self, drafter: Eagle3Drafter) -> Eagle3Drafter:
        """A drafter as it would serve: its weights through the type in which they are pushed.

        One copy is kept and written anew by every call.
        """
        self._twin.load_state_dict(drafter_tensors(drafter))
        return self._twin

    def published(
        self, serving: Serving, store: CheckpointStore, accepted_length: float | None
    ) -> None:
        self.rebase(serving, store)
        self.reference_length = accepted_length

    @torch.no_grad()
    def rebase(self, serving: Serving, store: CheckpointStore) -> bool:
        """Other weights serve now; whether their copy could be had."""
        self.serving = serving
        self.reference_length = None
        checkpoint = store.find(serving.sha256) if serving.sha256 else None
        if checkpoint is not None:
            self.drafter.load_state_dict(load_file(checkpoint.weights))
        elif not serving.sha256:
            self.drafter.load_state_dict(self._first.state_dict())
        self.known = checkpoint is not None or not serving.sha256
        return self.known

    def refused(self, sha256: str) -> None:
        self._refused.add(sha256)

    def was_refused(self, sha256: str) -> bool:
        return sha256 in self._refused
