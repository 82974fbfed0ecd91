"""Number of threads that evaluate a model, adapted at run time to the other load of the machine.

llama.cpp's threads wait for each other after each operation, hundreds of times per token, and spin while they wait.
That is fastest on an idle machine. If another program takes a core, all threads wait for the one that is not running,
and a token takes up to a hundred times as long. With one thread fewer, it takes little longer than on an idle machine.
docs/decisions/029-threads.md has the measurements.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from ragfm.models.hardware import FreeCpus

TRIAL_STEPS = 4
"""Steps with another number of threads before it is adopted."""
MIN_GAIN = 0.03
"""Another number of threads is adopted if its steps are faster by this share."""
MAX_LOSS = 0.02
"""Share of the time that trials may cost."""
MAX_PAUSE = 30.0
"""Maximum seconds of evaluation between two trials."""
_IDLE_PAUSE = 10.0
"""Minimum seconds of evaluation before a trial with fewer threads while others leave all CPUs free: it would only delay
a first answer. Not never, since a container may not see who else uses its CPUs."""
_STEPS_BETWEEN_TRIALS = 8
_FIRST_TRIAL = 2
"""Steps with a new size of batches before a trial: nobody knows yet how long they take when the machine is idle."""
_SLOW, _VERY_SLOW = 1.6, 4.0
"""Two steps, or one, that take this many times as long as the fastest one start a trial with fewer threads at once; two
only where others use the CPUs, since steps also take longer as a prompt grows."""
_FIXED_WORK = 4
"""What a step costs besides its tokens, in tokens: SmolLM2-135M takes 7 ms for 1 token, and 0.14 to 0.25 s for 128."""
_NEW, _FADING = 0.25, 1.01
"""Weight of a step in the average, and growth of the fastest step's time: steps take longer as a text grows."""


@dataclass
class _BatchSize:
    """Steps with batches of about the same size."""

    average: float = 0.0
    """Seconds per unit of work with the present number of threads; 0 before the first step."""
    fastest: float = math.inf
    """Seconds per unit of work in the fastest step, multiplied by its number of threads."""
    slow_steps: int = 0


class ThreadCount:
    """The number of threads for the next step. Starts with the CPUs that other programs left free since it was made.

    A few steps are tried with fewer threads as soon as steps are slow, and at intervals. A few are tried with more as
    soon as other programs leave CPUs free (`free_cpus`). The number is kept if it is faster. A trial ends at once when
    it is clearly slower; the more it has cost, the later the next one follows.
    """

    def __init__(self, maximum: int, free_cpus: Callable[[], float] | None = None) -> None:
        self.maximum, self._count = maximum, 0
        self._free_cpus = free_cpus or FreeCpus()
        self._sizes: defaultdict[int, _BatchSize] = defaultdict(_BatchSize)
        self._steps, self._seconds = 0, 0.0  # since the last trial, or in this one
        self._pauses = {-1: 0.0, +1: 0.0}
        """Seconds until the next trial with fewer, or with more, threads."""
        self._count_before = 0
        """During a trial, the number of threads before it; otherwise 0."""
        self._expected = 0.0
        """Seconds that the steps of the trial would have taken without it."""

    @property
    def count(self) -> int:
        """The number of threads for the next step."""
        if not self._count:
            self._count = max(1, round(min(self._free_cpus(), self.maximum)))
        return self._count

    def record(self, tokens: int, seconds: float) -> None:
        """Take into account how long a batch took with `count` threads, and choose `count` for the next one."""
        if self.maximum == 1:
            return
        size = self._sizes[tokens.bit_length()]
        work = tokens + _FIXED_WORK
        if self._count_before:
            self._record_trial(size, work, seconds)
            return
        if not size.average:  # these steps may be slow, too
            self._steps = max(self._steps, _STEPS_BETWEEN_TRIALS - _FIRST_TRIAL)
        self._steps += 1
        self._seconds += seconds
        pace = seconds / work
        size.average += _NEW * (pace - size.average) if size.average else pace
        size.fastest = min(pace * self.count, size.fastest * _FADING)
        slowness = pace * self.count / size.fastest
        size.slow_steps = size.slow_steps + 1 if slowness > _SLOW else 0
        free, change = self._free_cpus(), max(1, self.count // 8)
        knows_free, room = math.isfinite(free), round(min(free, self.maximum))
        is_idle = knows_free and room >= self.count
        is_due = self._steps >= _STEPS_BETWEEN_TRIALS
        if self.count > 1 and (slowness > _VERY_SLOW or (size.slow_steps > 1 and not is_idle)):
            self._start_trial(min(self.count - change, round(free)) if knows_free else self.count // 2)
        elif room > self.count and self._seconds >= self._pauses[+1] and (knows_free or is_due):
            self._start_trial(room if knows_free else self.count + change)
        elif self.count > 1 and is_due and self._seconds >= max(self._pauses[-1], _IDLE_PAUSE if is_idle else 0.0):
            self._start_trial(self.count - change)

    def _record_trial(self, size: _BatchSize, work: float, seconds: float) -> None:
        if not size.average:  # nothing to compare with: a slow trial with fewer threads would go on
            if self.count < self._count_before:
                self._count, self._count_before = self._count_before, 0
                self._steps, self._seconds = 0, 0.0
            return
        self._steps += 1
        self._seconds += seconds
        self._expected += size.average * work
        if self._steps < TRIAL_STEPS and self._seconds <= self._expected + size.average * work / 2:
            return
        relative, direction = self._seconds / self._expected, 1 if self.count > self._count_before else -1
        if relative < 1 - MIN_GAIN:
            self._pauses = {-1: 0.0, +1: 0.0}
            for other in self._sizes.values():
                other.average *= relative
        else:
            pause = max(2 * self._pauses[direction], (self._seconds - self._expected) / MAX_LOSS)
            self._pauses[direction] = min(MAX_PAUSE, pause)
            self._count = self._count_before
            for other in self._sizes.values():  # what was slow may be as fast as it gets now
                other.fastest = max(other.fastest, other.average * self.count)
        for other in self._sizes.values():
            other.slow_steps = 0
        self._count_before = self._steps = 0
        self._seconds = 0.0

    def _start_trial(self, count: int) -> None:
        self._count_before = self.count
        self._count = max(1, min(count, self.maximum))
        self._steps, self._seconds, self._expected = 0, 0.0, 0.0
