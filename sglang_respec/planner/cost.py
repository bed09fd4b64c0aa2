"""Step time of each configuration at any batch: the profile's, corrected by what is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sglang_respec.core import SpeculationConfig
from sglang_respec.planner.grid import lerp, locate
from sglang_respec.planner.profile import Profile

UNKNOWN_PROFILE_ERROR = 0.10  # relative; where a profile held nothing out
LEAST_PROFILE_ERROR = 0.05  # a few points that agree may do so by luck
CELL_SHARE = 0.5  # a batch bucket's own error, over the error its configuration has everywhere
FIRST_NOISE = 0.10  # relative scatter of one measured step, until it is known
LEAST_NOISE = 0.01
KNOWN = 0.005**2  # variance at which a correction stays open to slow drift (0.5 %)
NOISE_RATE = 0.02
NORMAL_MEAN_ABSOLUTE = math.sqrt(math.pi / 2.0)  # standard deviation over mean |x|
CLIP = 3.0  # deviations; a step further off (a prefill in between) counts as these
STALL = math.log(3.0)  # over what was foreseen; the process was stopped, or the host was busy
MAX_CORRECTION = math.log(8.0)
BUCKETS = 24  # of batch sizes, by powers of two

Place = tuple[int, float, int, float, int]  # cell and weights on both axes; bucket


class CostModel:
    """t(config, batch size, context), in seconds.

    The profile is laid out once on the union of all knots, where its piecewise linear functions
    are reproduced exactly; a look-up is then four multiplications. The correction of a step time
    is a product: one factor for all configurations (which changes no choice), one for the
    configuration, one for its batch bucket. Each is a log with a variance; a measured step is
    shared between them by their variances, as in a Kalman filter without covariances.
    """

    def __init__(self, profile: Profile, configs: Sequence[SpeculationConfig]) -> None:
        self.profile = profile
        self.configs = tuple(configs)
        grids = [*profile.stages.values(), *profile.rounds.values()]
        self.batch_sizes = tuple(sorted({b for grid in grids for b in grid.batch_sizes}))
        self.contexts = tuple(sorted({c for grid in grids for c in grid.context_tokens}))
        self._seconds = [
            [[profile.round_seconds(config, b, c) for c in self.contexts] for b in self.batch_sizes]
            for config in self.configs
        ]
        held_out = profile.comparative_error
        error = UNKNOWN_PROFILE_ERROR if held_out is None else max(LEAST_PROFILE_ERROR, held_out)
        everywhere = error**2 / (1.0 + CELL_SHARE**2)
        self._noise = FIRST_NOISE
        self._stalled = False  # the last measured step
        self._common, self._common_variance = 0.0, 0.25
        self._own = [0.0] * len(self.configs)
        self._own_variance = [everywhere] * len(self.configs)
        self._cell = [[0.0] * BUCKETS for _ in self.configs]
        self._cell_variance = [[everywhere * CELL_SHARE**2] * BUCKETS for _ in self.configs]
        self._factor = [[1.0] * BUCKETS for _ in self.configs]

    def place(self, batch_size: float, context_tokens: float) -> Place:
        """Where a batch lies on the grid; found once per decision, used for every config."""
        i, w = locate(self.batch_sizes, batch_size)
        j, u = locate(self.contexts, context_tokens)
        return i, w, j, u, min(int(batch_size).bit_length(), BUCKETS - 1)

    def profiled(self, index: int, place: Place) -> float:
        """Seconds by the profile alone."""
        i, w, j, u, _ = place
        rows = self._seconds[index]
        low = lerp(rows[i], j, u)
        return low if w == 0.0 else low + w * max(0.0, lerp(rows[i + 1], j, u) - low)

    def relative(self, index: int, place: Place) -> float:
        """Seconds, but for the factor that all configurations share."""
        return self.profiled(index, place) * self._factor[index][place[4]]

    def relatives(self, place: Place) -> list[float]:
        """:meth:`relative` of every configuration, in one go."""
        i, w, j, u, bucket = place
        found = []
        for rows, factors in zip(self._seconds, self._factor, strict=True):
            row = rows[i]
            seconds = row[j] if u == 0.0 else row[j] + u * (row[j + 1] - row[j])
            if w != 0.0:
                row = rows[i + 1]
                more = (row[j] if u == 0.0 else row[j] + u * (row[j + 1] - row[j])) - seconds
                if more > 0.0:
                    seconds += w * more
            found.append(seconds * factors[bucket])
        return found

    def seconds(self, index: int, place: Place) -> float:
        """Seconds of one round of ``configs[index]``, corrected."""
        return self.relative(index, place) * self.common

    @property
    def common(self) -> float:
        """The factor that all configurations share."""
        return math.exp(self._common)

    def relative_error(self, index: int, place: Place) -> float:
        """Relative standard error of :meth:`relative`."""
        return math.sqrt(self._own_variance[index] + self._cell_variance[index][place[4]])

    def teaches(self, index: int, place: Place, rounds: int) -> float:
        """Relative variance that ``rounds`` measured steps would take away."""
        variance = self._own_variance[index] + self._cell_variance[index][place[4]]
        after = variance / (1.0 + variance * rounds / self._noise**2)
        return max(0.0, variance - max(after, 2.0 * KNOWN))

    def record(self, index: int, place: Place, seconds: float) -> None:
        """Learn from one measured step. One that stalled teaches nothing; if the next one is as
        slow, the machine is."""
        surprise = math.log(seconds / self.seconds(index, place))
        first_stall = surprise > STALL and not self._stalled
        self._stalled = surprise > STALL
        if first_stall:
            return
        bucket = place[4]
        common, own = self._common_variance, self._own_variance[index]
        cell = self._cell_variance[index][bucket]
        total = common + own + cell + self._noise**2
        clip = CLIP * math.sqrt(total)
        surprise = max(-clip, min(clip, surprise))
        self._common = _bounded(self._common + surprise * common / total)
        self._own[index] = _bounded(self._own[index] + surprise * own / total)
        self._cell[index][bucket] = _bounded(self._cell[index][bucket] + surprise * cell / total)
        if common <= 2.0 * KNOWN:  # before that, a surprise is the profile's and not the clock's
            scatter = NORMAL_MEAN_ABSOLUTE * abs(surprise)
            self._noise = max(LEAST_NOISE, self._noise + NOISE_RATE * (scatter - self._noise))
        self._common_variance = max(KNOWN, common * (1.0 - common / total))
        self._own_variance[index] = max(KNOWN, own * (1.0 - own / total))
        self._cell_variance[index][bucket] = max(KNOWN, cell * (1.0 - cell / total))
        for each, _ in enumerate(self._factor[index]):
            self._factor[index][each] = math.exp(self._own[index] + self._cell[index][each])

    def extend_seconds(self, tokens: float, batch_size: float, context_tokens: float) -> float:
        """Seconds of one draft-extend over ``tokens`` of the whole batch."""
        seconds = self.profile.extend_seconds(tokens, batch_size, context_tokens)
        return seconds * self.common


def _bounded(log: float) -> float:
    return max(-MAX_CORRECTION, min(MAX_CORRECTION, log))
