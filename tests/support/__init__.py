"""Helpers that several test modules share. This module is imported before numpy and torch are."""

import os
import shutil
import tempfile
from pathlib import Path

# pytest-xdist runs a process per core. With more threads than cores, those of OpenMP and OpenBLAS wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A commit syncs some 20 files and folders, for which a disk takes longer than for the rest of a test.
_MEMORY = Path("/dev/shm")
if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 4 * 2**30 and not os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC:
    os.environ.setdefault("TMPDIR", str(_MEMORY))
    tempfile.tempdir = None
