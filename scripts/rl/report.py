"""What the runs say: equal rollouts, accepted length held or lost, speed, the ablation of w(r)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench_report import Spread, markdown_table

from rl.records import ARMS, ArmRun, StepRecord

EDGE_STEPS = 3  # at either end of a run; their mean says where it began and where it ended


@dataclass(frozen=True)
class Difference:
    """The first step at which an arm's rollouts are not those of the first arm of its seed."""

    seed: int
    arm: str
    step: int


def differences(runs: Sequence[ArmRun]) -> list[Difference]:
    """Empty where all arms of a seed drew the same tokens at every step."""
    found = []
    for seed in sorted({run.seed for run in runs}):
        first, *others = (run for run in runs if run.seed == seed)
        for other in others:
            pairs = zip(first.steps, other.steps, strict=True)
            unequal = (a.step for a, b in pairs if a.digest != b.digest)
            if (step := next(unequal, None)) is not None:
                found.append(Difference(seed, other.arm, step))
    return found


def equality_line(runs: Sequence[ArmRun]) -> str:
    """One sentence about the rollouts of the arms."""
    arms = list(dict.fromkeys(run.arm for run in runs))
    if len(arms) < 2:
        return f"One arm only ({arms[0]}), so there is nothing to compare rollouts with."
    found = differences(runs)
    if not found:
        seeds = len({run.seed for run in runs})
        tokens = sum(step.tokens for run in runs if run.arm == arms[0] for step in run.steps)
        return (
            f"Rollouts are identical in all {len(arms)} arms at every step: {seeds} seed(s), "
            f"{len(runs[0].steps)} steps, {tokens} tokens in each arm. So are rewards and policies."
        )
    first = [f"{each.arm} with seed {each.seed} from step {each.step}" for each in found]
    return f"Rollouts DIFFER from those of {arms[0]}: {', '.join(first)}."


def accepted(steps: Sequence[StepRecord]) -> float | None:
    """Tokens per verify over all of these steps; None in plain decoding."""
    verifies = sum(each.verifies for each in steps)
    return sum(each.committed for each in steps) / verifies if verifies else None


def tokens_per_s(steps: Sequence[StepRecord]) -> float:
    return sum(each.tokens for each in steps) / sum(each.rollout_s for each in steps)


def start_of(run: ArmRun) -> list[StepRecord]:
    return run.steps[:EDGE_STEPS]


def end_of(run: ArmRun) -> list[StepRecord]:
    return run.steps[-EDGE_STEPS:]


def summary_table(runs: Sequence[ArmRun]) -> str:
    """A row per arm; medians over the seeds, with smallest and largest."""
    header = [
        "arm", "accepted, start", "accepted, end", "change", "rollout tokens/s", "against plain",
        "tokens/s, end", "against plain, end", "learner CPU s", "drafter versions",
    ]  # fmt: skip
    return markdown_table(header, [_row(arm, runs) for arm in _arms(runs)])


def ablation_table(runs: Sequence[ArmRun]) -> str:
    """w(r) against what it does for the accepted length; runs without a learner are left out."""
    header = ["w(r)", "seeds", "accepted, whole run", "accepted, end", "end, against none"]
    rows = []
    for arm in _arms(runs):
        weight = ARMS[arm].weight
        if weight is None:
            continue
        mine = [run for run in runs if run.arm == arm]
        whole = [_known(accepted(run.steps)) for run in mine]
        end = [_known(accepted(end_of(run))) for run in mine]
        ratios = _ratios(runs, arm, "learner", lambda run: _known(accepted(end_of(run))))
        rows.append([weight, str(len(mine)), _text(whole), _text(end), _text(ratios, "+.1%", -1)])
    return markdown_table(header, rows)


def _row(arm: str, runs: Sequence[ArmRun]) -> list[str]:
    mine = [run for run in runs if run.arm == arm]
    row = [arm]
    if ARMS[arm].speculates:
        begin = [_known(accepted(start_of(run))) for run in mine]
        end = [_known(accepted(end_of(run))) for run in mine]
        change = [b / a - 1 for a, b in zip(begin, end, strict=True)]
        row += [_text(begin), _text(end), _text(change, "+.1%")]
    else:
        row += ["", "", ""]
    row += [
        _text([tokens_per_s(run.steps) for run in mine], ".0f"),
        _text(_ratios(runs, arm, "plain", lambda run: tokens_per_s(run.steps)), ".2f"),
        _text([tokens_per_s(end_of(run)) for run in mine], ".0f"),
        _text(_ratios(runs, arm, "plain", lambda run: tokens_per_s(end_of(run))), ".2f"),
        _text([sum(each.learner_cpu_s for each in run.steps) for run in mine], ".0f"),
        _text([_pushes(run) for run in mine], ".0f"),
    ]
    return row


def _pushes(run: ArmRun) -> float:
    """Drafter versions that came after the first."""
    return float(run.steps[-1].drafter_version or 0)


def _ratios(
    runs: Sequence[ArmRun], arm: str, base: str, value: Callable[[ArmRun], float]
) -> list[float]:
    """An arm over another of the same seed, where both were run."""
    bases = {run.seed: value(run) for run in runs if run.arm == base}
    return [value(run) / bases[run.seed] for run in runs if run.arm == arm and run.seed in bases]


def _arms(runs: Sequence[ArmRun]) -> list[str]:
    here = {run.arm for run in runs}
    return [name for name in ARMS if name in here]


def _known(value: float | None) -> float:
    assert value is not None, "an arm that speculates has verified something"
    return value


def _text(values: Sequence[float], form: str = ".2f", shift: float = 0.0) -> str:
    """Median (smallest to largest), or nothing where there is no value."""
    if not values:
        return ""
    spread = Spread.of([value + shift for value in values])
    if len(values) == 1:
        return format(spread.median, form)
    low, high = format(spread.low, form), format(spread.high, form)
    return f"{format(spread.median, form)} ({low} to {high})"
