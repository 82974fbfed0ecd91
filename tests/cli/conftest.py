"""A collection that is ingested once, and copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.shell import Shell
from support.small_documents import write_documents


@pytest.fixture(scope="session")
def ingested_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `docs`, ingested with a tag and a pattern."""
    folder = tmp_path_factory.mktemp("ingested")
    write_documents(folder)
    Shell(folder)("ingest", "docs", "--tag", "year=2026", "--exclude", "*.tmp")
    return folder


@pytest.fixture
def ingested(tmp_path: Path, ingested_folder: Path) -> Shell:
    """A shell in a copy of that folder."""
    shutil.copytree(ingested_folder, tmp_path, dirs_exist_ok=True)
    return Shell(tmp_path)
