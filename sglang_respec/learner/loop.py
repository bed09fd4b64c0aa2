"""The learner: collects, learns, judges, publishes; each at its own pace.

Three threads. One collects rollouts into the buffer. This one, the caller's, owns the drafter and
its optimiser. A third pushes checkpoints, which it reads from disk. They share the buffer, the
reward book and the publisher's one slot, all behind locks, and no tensor that is written to.
"""

import logging
import random
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from sglang_respec.learner.acceptance import Acceptance, measure
from sglang_respec.learner.baseline import Baseline
from sglang_respec.learner.gate import Judgement, PublishPolicy
from sglang_respec.learner.journal import Journal
from sglang_respec.learner.publisher import Candidate, Outcome, Publisher, Serving
from sglang_respec.learner.replay import ReplayBuffer
from sglang_respec.learner.rewards import RewardBook
from sglang_respec.learner.sample_weights import weight_rule
from sglang_respec.learner.settings import LearnerSettings
from sglang_respec.learner.sources import SampleSource
from sglang_respec.learner.store import Checkpoint, CheckpointStore
from sglang_respec.learner.trainer import Trainer

logger = logging.getLogger(__name__)

IDLE_S = 0.1  # between two looks for something to do


class Learner:
    """One learner for one server."""

    def __init__(
        self,
        *,
        source: SampleSource,
        book: RewardBook,
        buffer: ReplayBuffer,
        trainer: Trainer,
        baseline: Baseline,
        policy: PublishPolicy,
        publisher: Publisher,
        store: CheckpointStore,
        journal: Journal,
        settings: LearnerSettings,
    ) -> None:
        self._source, self._book, self._buffer = source, book, buffer
        self._trainer, self._baseline, self._policy = trainer, baseline, policy
        self._publisher, self._store, self._journal = publisher, store, journal
        self._settings = settings
        self._rule = weight_rule(settings.weight)
        self._trained_tokens = 0
        self._last_publish_step = self._last_judged_step = 0
        self._latest: dict[str, Any] = {}  # replaced whole, read by any thread
        self._counts: Counter[str] = Counter()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint; rollouts collected since are in the source or gone."""
        state = checkpoint.state
        self._trainer.restore(checkpoint.trainer_tensors(), state.step)
        serving = self._store.find(self._baseline.serving.sha256)
        self._last_publish_step = serving.state.step if serving else state.last_publish_step
        self._last_judged_step = state.step
        self._journal.write("resumed", step=state.step, sha256=state.sha256)

    def run(self, stop: threading.Event, *, max_updates: int | None = None) -> None:
        """Work until ``stop`` is set, or until so many updates in all; then end in order."""
        with ThreadPoolExecutor(1, thread_name_prefix="respec-collect") as pool:
            ended = threading.Event()
            collecting = pool.submit(self._collect, ended)
            try:
                while not stop.is_set() and not self._reached(max_updates):
                    self._look_after(collecting)
                    if self._may_learn():
                        self._learn()
                        self._judge_if_due()
                    else:
                        stop.wait(IDLE_S)
            finally:
                ended.set()
                self._finish()

    def status(self) -> dict[str, Any]:
        """Where everything stands; any thread."""
        return {
            "updates": self._trainer.step,
            "latest": self._latest,
            "serving_version": self._baseline.serving.version,
            "publishing": self._publisher.busy,
            "source": self._source.counters(),
            "rewards": self._book.counters(),
            "buffer": self._buffer.counters(),
            "pushes": dict(self._counts),
        }

    def _collect(self, ended: threading.Event) -> None:
        while not ended.is_set():
            samples = self._source.read()
            now = time.monotonic()
            self._book.add(samples, now)
            self._buffer.add(self._book.release(now), now)
            self._buffer.reward(self._book.take_late())
            if not samples:
                ended.wait(IDLE_S)

    def _look_after(self, collecting: "Future[None]") -> None:
        if collecting.done():
            collecting.result()  # raises what ended it
        self._buffer.drop_old(time.monotonic())
        if (outcome := self._publisher.take()) is not None:
            self._take_in(outcome)
        serving = self._publisher.seen()
        if serving is not None and serving != self._baseline.serving:
            self._rebase(serving)

    def _reached(self, max_updates: int | None) -> bool:
        return max_updates is not None and self._trainer.step >= max_updates

    def _may_learn(self) -> bool:
        """Enough is here, and it was not learned from too often yet."""
        here = self._buffer.counters()["train_tokens"]
        allowance = self._settings.reuse * self._buffer.arrived_tokens
        return here >= self._settings.least_tokens and self._trained_tokens < allowance

    def _learn(self) -> None:
        step = self._trainer.step
        parts = self._buffer.draw(
            random.Random(f"{self._settings.seed}-{step}"),  # noqa: S311 (batches, no secrets)
            batch_tokens=self._settings.batch_tokens, window=self._settings.window_tokens,
            rule=self._rule, clip=self._settings.weight_clip,
        )  # fmt: skip
        if not parts:
            return
        started = time.monotonic()
        figures = self._trainer.update(parts)
        self._trained_tokens += sum(len(part.scored_rows) for part in parts)
        seconds = round(time.monotonic() - started, 4)
        self._journal.write("update", **asdict(figures), seconds=seconds)
        self._latest = {**self._latest, "loss": figures.loss, "overlap": figures.overlap}
        if not figures.applied:
            self._counts["updates_not_finite"] += 1
        if self._trainer.step % self._settings.checkpoint_every == 0:
            self._checkpoint()

    def _judge_if_due(self) -> None:
        since = self._trainer.step - self._last_judged_step
        held_out = self._buffer.held_out()
        if since < self._settings.judge_every or len(held_out) < self._settings.least_held_out:
            return
        self._last_judged_step = self._trainer.step
        self._publisher.look()
        judgement = self._judge(held_out)
        if self._policy.due(judgement) and not self._publisher.busy:
            if judgement.passes:
                self._publish(judgement)
            else:
                self._counts["held_back"] += 1

    def _judge(self, held_out: list[Any]) -> Judgement:
        started = time.monotonic()
        serving = self._measure(self._baseline.drafter, held_out)
        candidate = self._measure(self._baseline.rounded(self._trainer.averaged), held_out)
        judgement = Judgement(
            self._trainer.step, len(held_out), serving, candidate,
            self._baseline.reference(serving.length),
            self._trainer.step - self._last_publish_step,
        )  # fmt: skip
        figures = {
            "step": judgement.step, "rollouts": judgement.rollouts,
            "serving": serving.length, "candidate": candidate.length,
            "reference": judgement.reference_length, "decay": judgement.decay,
            "version": self._baseline.serving.version,
        }  # fmt: skip
        self._latest = {**self._latest, **figures}
        seconds = round(time.monotonic() - started, 4)
        self._journal.write("judged", **figures, seconds=seconds)
        logger.info(
            "update %d: loss %.4f; tokens per verify %.3f, serving (version %d) %.3f; %d rollouts "
            "to learn from",
            judgement.step, self._latest["loss"], candidate.length,
            self._baseline.serving.version, serving.length,
            self._buffer.counters()["train_rollouts"],
        )  # fmt: skip
        return judgement

    def _measure(self, drafter: Any, held_out: list[Any]) -> Acceptance:
        return measure(
            drafter, held_out, self._settings.steps, window=self._settings.window_tokens,
            batch_tokens=self._settings.batch_tokens,
        )  # fmt: skip

    def _publish(self, judgement: Judgement) -> None:
        """Checkpoint first: what is pushed can then always be found again."""
        checkpoint = self._checkpoint()
        if self._baseline.was_refused(checkpoint.state.sha256):
            return
        self._publisher.submit(
            Candidate(
                checkpoint.weights, checkpoint.state.sha256, f"learner-{judgement.step}",
                self._baseline.serving, judgement.step, judgement.candidate.length,
            )
        )  # fmt: skip

    def _checkpoint(self) -> Checkpoint:
        pushing = self._publisher.in_flight
        return self._store.save(
            self._trainer.averaged, self._trainer.state_tensors(), step=self._trainer.step,
            base_version=self._baseline.serving.version,
            serving_sha256=self._baseline.serving.sha256,
            reference_length=self._baseline.reference_length,
            last_publish_step=self._last_publish_step,
            in_flight=pushing.sha256 if pushing else "",
        )  # fmt: skip

    def _take_in(self, outcome: Outcome) -> None:
        candidate, serving = outcome.candidate, outcome.serving
        self._counts[outcome.result] += 1
        self._journal.write(
            outcome.result, step=candidate.step, sha256=candidate.sha256, reason=outcome.reason,
            version=serving.version if serving else None, seconds=round(outcome.seconds, 3),
        )  # fmt: skip
        logger.info("push of update %d: %s (%s)", candidate.step, outcome.result, outcome.reason)
        if outcome.result == "published":
            assert serving is not None
            self._last_publish_step = candidate.step
            self._baseline.published(serving, self._store, candidate.accepted_length)
        elif outcome.result == "refused":
            self._baseline.refused(candidate.sha256)
        elif outcome.result == "moved":
            assert serving is not None
            self._rebase(serving)

    def _rebase(self, serving: Serving) -> None:
        """Something else serves than we thought: another pusher's, or a guard took ours back."""
        known = self._baseline.rebase(serving, self._store)
        self._counts["rebased"] += 1
        self._journal.write("rebased", version=serving.version, sha256=serving.sha256, known=known)
        logger.info(
            "version %d serves, whose weights are %s",
            serving.version,
            "ours" if known else "unknown",
        )

    def _finish(self) -> None:
        if (outcome := self._publisher.take(wait=True)) is not None:
            self._take_in(outcome)
        self._publisher.close()
        if self._trainer.step:
            self._checkpoint()
        self._journal.write("ended", step=self._trainer.step)
