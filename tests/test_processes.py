"""The check that no process outlives the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
from support.processes import RUN_VARIABLE, wait_for_end

RUNS = "import time; print(flush=True); time.sleep(600)"
ORPHAN = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {RUNS!r}], stdout=-1).stdout.readline()"


def test_an_orphan_is_found_named_and_killed() -> None:
    run = f"{os.getpid()}-orphan"
    subprocess.run([sys.executable, "-c", ORPHAN], check=True, env={**os.environ, RUN_VARIABLE: run})
    (left,) = [text for text in wait_for_end(run, 0) if "sleep(600)" in text]
    assert "test_an_orphan_is_found_named_and_killed" in left
    assert not psutil.pid_exists(int(left.split(",")[0].split()[1])) or not wait_for_end(run, 10)


def test_a_process_that_ends_in_time_is_not_reported() -> None:
    run = f"{os.getpid()}-short"
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(0.5)"], env={**os.environ, RUN_VARIABLE: run}
    ):
        start = time.monotonic()
        assert wait_for_end(run, 60) == []
        assert time.monotonic() - start < 60
