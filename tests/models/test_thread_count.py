"""The number of threads, on simulated machines."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ragfm.models.hardware import FreeCpus, usable_cpus
from ragfm.models.thread_count import MAX_LOSS, ThreadCount

TOKEN = 0.01
"""Seconds of a token with one thread on an idle machine."""


class Machine:
    """A machine with a number of cores, some of which other programs use."""

    def __init__(self, cores: int, seed: int = 0) -> None:
        self.cores, self.busy, self.work = cores, 0, 1.0
        self._random = random.Random(seed)

    def step(self, threads: int) -> float:
        """Seconds of a step. Threads that share a core with another program make all others wait."""
        seconds = self.work * TOKEN / threads * self._random.uniform(0.97, 1.05)
        if threads > 1 and threads + self.busy > self.cores:
            seconds += self._random.uniform(0.1, 1.0)  # how often the others' time slices are in the way
        return seconds

    def new_count(self, *, sees_others: bool = True) -> ThreadCount:
        return ThreadCount(self.cores, lambda: self.cores - self.busy if sees_others else math.inf)

    def run(self, count: ThreadCount, seconds: float) -> tuple[float, list[int]]:
        """Run steps for a while; steps per second, and the number of threads of each step."""
        total, used = 0.0, list[int]()
        while total < seconds:
            used.append(count.count)
            took = self.step(count.count)
            count.record(1, took)
            total += took
        return len(used) / total, used


def best_rate(machine: Machine) -> float:
    """Steps per second with the best fixed number of threads."""
    rates = []
    for threads in range(1, machine.cores + 1):
        steps = [machine.step(threads) for _ in range(300)]
        rates.append(len(steps) / sum(steps))
    return max(rates)


@pytest.mark.parametrize("cores", [2, 4, 16])
@pytest.mark.parametrize("seed", range(5))
def test_an_idle_machine_uses_all_threads(cores: int, seed: int) -> None:
    machine = Machine(cores, seed)
    rate, used = machine.run(machine.new_count(), 30)
    assert rate > (1 - 1.5 * MAX_LOSS) * best_rate(machine)
    assert used.count(cores) > 0.9 * len(used)


def test_a_first_answer_on_an_idle_machine_is_not_delayed_by_a_trial() -> None:
    machine = Machine(4)
    count, used = machine.new_count(), list[int]()
    for tokens in [*[128] * 5, 60, *[1] * 50]:
        used.append(count.count)
        count.record(tokens, tokens * machine.step(count.count))
    assert set(used) == {4}


def test_cpus_that_become_free_are_used_from_the_next_step() -> None:
    """While a model loads, helper processes start: a first prompt begins with few threads."""
    machine = Machine(4)
    machine.busy = 3
    count, used = machine.new_count(), list[int]()
    for _ in range(8):
        used.append(count.count)
        machine.busy = 0
        count.record(128, 128 * machine.step(count.count))
    assert used == [1, 4, 4, 4, 4, 4, 4, 4]


@pytest.mark.parametrize(("cores", "busy"), [(2, 1), (2, 2), (4, 1), (4, 3), (16, 1), (16, 6)])
@pytest.mark.parametrize("from_start", [True, False])
def test_other_programs_get_their_cores(cores: int, busy: int, from_start: bool) -> None:
    machine = Machine(cores)
    count = machine.new_count()
    if not from_start:
        machine.run(count, 10)
    machine.busy = busy
    machine.run(count, 5)
    rate, used = machine.run(count, 60)
    assert rate > 0.9 * best_rate(machine)
    assert sum(threads + busy <= max(cores, 1 + busy) for threads in used) > 0.95 * len(used)


def test_a_busy_core_that_nobody_reports_costs_little() -> None:
    """As in a container whose processor time is limited."""
    machine = Machine(2)
    count = machine.new_count(sees_others=False)
    machine.busy = 1
    machine.run(count, 60)
    rate, _ = machine.run(count, 300)
    assert rate > 0.9 * best_rate(machine)


@pytest.mark.parametrize("cores", [2, 4, 16])
@pytest.mark.parametrize("sees_others", [True, False])
def test_threads_come_back_when_the_other_programs_end(cores: int, sees_others: bool) -> None:
    machine = Machine(cores)
    count = machine.new_count(sees_others=sees_others)
    machine.busy = cores // 2
    machine.run(count, 30)
    machine.busy = 0
    machine.run(count, 5 if sees_others else 60)
    rate, _ = machine.run(count, 20)
    assert rate > 0.95 * best_rate(machine)


def test_steps_that_take_longer_for_everyone_keep_the_threads() -> None:
    machine = Machine(4)
    count = machine.new_count()
    machine.run(count, 5)
    for _ in range(40):  # a growing text
        machine.work *= 1.05
        _, used = machine.run(count, 2)
        assert used.count(4) > 0.9 * len(used)
    for work in (1.0, 5.0):  # another text
        machine.work = work
        machine.run(count, 1)
        _, used = machine.run(count, 5)
        assert used.count(4) > 0.9 * len(used)


def test_one_thread_stays_one_thread() -> None:
    count = ThreadCount(1)
    for seconds in (0.01, 9.0, 9.0, 0.01):
        count.record(1, seconds)
        assert count.count == 1


def test_batches_are_compared_with_batches_of_their_size() -> None:
    """A long prompt between the tokens of an answer is not a sign of a busy machine."""
    machine = Machine(4)
    count, used = machine.new_count(), list[int]()
    for _ in range(300):
        for tokens in (1, 1, 1, 128, 8):
            used.append(count.count)
            count.record(tokens, tokens * machine.step(count.count))
    assert used.count(4) > 0.9 * len(used)


def test_a_trial_ends_with_a_batch_of_a_new_size() -> None:
    """More requests begin during a trial: how long their steps take with all threads is not known."""
    machine = Machine(2)
    count = machine.new_count(sees_others=False)
    while count.count == count.maximum:
        count.record(1, machine.step(count.count))
    used = []
    for _ in range(300):
        used.append(count.count)
        count.record(8, 8 * machine.step(count.count))
    assert used.count(2) > 0.9 * len(used)


def test_a_busy_machine_is_noticed_before_the_first_step() -> None:
    machine = Machine(2)
    machine.busy = 2
    assert machine.new_count().count == 1
    machine.busy = 0
    assert machine.new_count().count == 2
    assert machine.new_count(sees_others=False).count == 2


def test_each_size_of_batches_has_few_slow_steps() -> None:
    """A trial ends with the first token of an answer, whose steps are slow from the beginning."""
    machine = Machine(2)
    machine.busy = 2
    count, used = machine.new_count(sees_others=False), list[int]()
    for tokens in [32, 32, 32, *[1] * 20, *[8] * 20]:
        used.append(count.count)
        count.record(tokens, tokens * machine.step(count.count))
    assert used[:3].count(2) <= 2
    assert used[3:23].count(2) <= 3
    assert used[23:].count(2) <= 3


def test_a_thread_count_applies_to_all_batch_sizes() -> None:
    machine = Machine(2)
    count = machine.new_count()
    machine.run(count, 2)
    machine.busy = 1
    machine.run(count, 5)
    assert count.count == 1
    count.record(128, 0.7)
    assert count.count == 1


@pytest.mark.parametrize(("running", "all_free"), [(1, True), (2, False), (99, False)])
def test_what_has_ended_takes_no_cpu_from_the_first_step(tmp_path: Path, running: int, all_free: bool) -> None:
    def write(ticks: int) -> None:
        lines = (f"cpu{cpu} {ticks} 0 0 0 0 0 0 0 0 0" for cpu in usable_cpus())
        (tmp_path / "proc" / "stat").write_text("\n".join(lines))
        (tmp_path / "proc" / "loadavg").write_text(f"9.00 9.00 9.00 {running}/200 4321")

    (tmp_path / "proc").mkdir()
    write(0)
    free = FreeCpus(tmp_path)
    time.sleep(0.3)
    write(1_000_000)  # of helper processes
    assert (free() == len(usable_cpus())) == all_free
    write(2_000_000)
    time.sleep(0.3)
    assert free() < 0  # later numbers are averages


@pytest.mark.timing
def test_cpus_that_other_processes_use_are_not_free() -> None:
    free = FreeCpus()
    for _ in range(3):
        time.sleep(0.3)
        before = free()
        burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            time.sleep(1)
            shared = free()
            end = time.process_time() + 0.3
            while time.process_time() < end:  # this process does not count
                pass
            own = free()
        finally:
            burner.kill()
            burner.wait()
        assert all(number <= len(usable_cpus()) for number in (before, shared, own))
        if before - shared > 0.2:
            return
    assert before < 0.5, "the machine was idle, and a burning process was not seen"
