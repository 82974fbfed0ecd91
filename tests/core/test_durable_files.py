"""Files that are replaced: links keep their place, and what is not a file is left alone."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from support.torture.full_disk import fill, small_disk

from ragfm.core.durable_files import storage_failure, write_durably
from ragfm.core.errors import DiskFullError


def test_the_file_that_a_link_names_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    file, link = tmp_path / "shared" / "ragfm.toml", tmp_path / "ragfm.toml"
    link.symlink_to("shared/ragfm.toml")
    for data in (b"new", b"replaced"):
        write_durably(link, data)
        assert link.is_symlink()
        assert file.read_bytes() == data
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["ragfm.toml", "ragfm.toml", "shared"]


def test_a_pipe_or_device_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="not a regular file"):
        write_durably(pipe, b"x")
    assert pipe.is_fifo()


@pytest.mark.parametrize("kind", ["array", "file"])
def test_a_full_disk_is_told_from_other_failures(tmp_path: Path, kind: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with ExitStack() as mounts:
        try:
            mounts.enter_context(small_disk(disk))
        except OSError as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        fill(disk, 8192)
        file, rows = disk / "file.npy", np.zeros(1_000_000)
        with pytest.raises(OSError, match=r"written|No space") as raised:
            np.save(file, rows) if kind == "array" else file.write_bytes(rows.tobytes())
        assert storage_failure(disk, raised.value) == (DiskFullError, "No space left on device")


@pytest.mark.skipif(os.geteuid() != 0, reason="only the administrator can give files away")
def test_the_administrator_takes_no_file_from_its_owner(tmp_path: Path) -> None:
    # `sudo ragfm keys add` would lock all keys out of a server that runs as another user
    file = tmp_path / "keys.json"
    file.touch()
    os.chown(file, 65534, 65533)
    write_durably(file, b"{}", mode=0o600)
    status = file.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (65534, 65533, 0o600)
