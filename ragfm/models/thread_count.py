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
"""Two steps, or one, that take this many times as long as the fastest one start a trial with fewer threads at once."""
_NEW, _FADING = 0.25, 1.01
"""Weight of a step in the average, and growth of the fastest step's time: steps take longer as a text grows."""


@dataclass
class _BatchSize:
    """Steps with batches of about the same size."""

    average: float = 0.0
    """Seconds of a step with the present number of threads; 0 before the first one."""
    fastest: float = math.inf
    """Seconds of the fastest step, multiplied by its number of threads."""
    slow_steps: int = 0


class ThreadCount:
    """The number of threads for the next step. Starts with the CPUs that other programs left free since it was made.

    A few steps are tried with fewer threads as soon as steps are slow, and at intervals. A few are tried with more when
    other programs leave CPUs free (`free_cpus`). The number is kept if it is faster. A trial ends at once when it is
    clearly slower; the more it has cost, the later the next one follows.
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
        if self._count_before:
            self._steps += 1
            self._seconds += seconds
            self._expected += size.average
            if not size.average:  # nothing to compare with
                self._count, self._count_before = self._count_before, 0
                self._steps, self._seconds = 0, 0.0
            elif self._seconds > self._expected + size.average / 2 or self._steps == TRIAL_STEPS:
                self._end_trial()
            return
        if not size.average:  # these steps may be slow, too
            self._steps = max(self._steps, _STEPS_BETWEEN_TRIALS - _FIRST_TRIAL)
        self._steps += 1
        self._seconds += seconds
        size.average += _NEW * (seconds - size.average) if size.average else seconds
        size.fastest = min(seconds * self.count, size.fastest * _FADING)
        slowness = seconds * self.count / size.fastest
        size.slow_steps = size.slow_steps + 1 if slowness > _SLOW else 0
        is_slow = slowness > _VERY_SLOW or size.slow_steps > 1
        change = max(1, self.count // 8)
        if is_slow and self.count > 1:
            free = self._free_cpus()
            self._start_trial(min(self.count - change, round(free)) if math.isfinite(free) else self.count // 2)
        elif self._steps >= _STEPS_BETWEEN_TRIALS:
            free = self._free_cpus()
            room = round(min(free, self.maximum))
            if room > self.count and self._seconds >= self._pauses[+1]:
                self._start_trial(room if math.isfinite(free) else self.count + change)
            elif self.count > 1:
                is_idle = math.isfinite(free) and room >= self.count
                if self._seconds >= max(self._pauses[-1], _IDLE_PAUSE if is_idle else 0.0):
                    self._start_trial(self.count - change)

    def _start_trial(self, count: int) -> None:
        self._count_before = self.count
        self._count = max(1, min(count, self.maximum))
        self._steps, self._seconds, self._expected = 0, 0.0, 0.0

    def _end_trial(self) -> None:
        relative, direction = self._seconds / self._expected, 1 if self.count > self._count_before else -1
        if relative < 1 - MIN_GAIN:
            self._pauses = {-1: 0.0, +1: 0.0}
            for size in self._sizes.values():
                size.average *= relative
        else:
            pause = max(2 * self._pauses[direction], (self._seconds - self._expected) / MAX_LOSS)
            self._pauses[direction] = min(MAX_PAUSE, pause)
            self._count = self._count_before
            for size in self._sizes.values():  # what was slow may be as fast as it gets now
                size.fastest = max(size.fastest, size.average * self.count)
        for size in self._sizes.values():
            size.slow_steps = 0
        self._count_before = self._steps = 0
        self._seconds = 0.0
