"""Helpers that several test modules share. This module is imported before numpy and torch are."""

import os

# pytest-xdist runs a process per core. With more threads than cores, those of OpenMP and OpenBLAS wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
