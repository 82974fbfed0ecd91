"""Run the command line, in a process of its own or in this one."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HIT_KEYS = {
    *("uri", "name", "page", "place", "start", "end", "lines", "headings", "text", "image", "box", "score"),
    *("scores", "chunk_id"),
}


_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["ragfm.cli.main", "ragfm.store.collection_store", "ragfm_indexes.bm25", "faiss"])


class Shell:
    """Runs `ragfm` in a folder, in a process of its own, with the embedder `hashing` by default.

    The process is forked from one that has imported the libraries, and used nothing of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = os.environ | {"RAGFM_EMBEDDER": "hashing", "HF_HUB_OFFLINE": "1"}

    def __call__(self, *words: str | Path, code: int = 0, typed: str | None = None) -> subprocess.CompletedProcess[str]:
        with TemporaryDirectory() as folder:
            streams = [Path(folder, name) for name in ("stdin", "stdout", "stderr")]
            for stream in streams:
                stream.write_text(typed or "" if stream.name == "stdin" else "")
            command = ["ragfm", *map(str, words)]
            process = _forks.Process(target=_run, args=(command, self.folder, dict(self.env), streams))
            process.start()
            process.join(300)
            process.kill()
            process.join()
            stdout, stderr = (stream.read_text() for stream in streams[1:])
        assert process.exitcode == code, stdout + stderr
        assert "Traceback" not in stderr
        return subprocess.CompletedProcess(command, code, stdout, stderr)

    def json(self, *words: str | Path, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code).stdout)


def said_by(shell: Shell, *ingests: Sequence[str]) -> list[str]:
    """What `ragfm` prints while these `ingest` and the collection is shown, exported and backed up."""
    said = []
    for words in (
        *(("ingest", *arguments) for arguments in ingests),
        ("status", "--json"),
        ("sources", "--json"),
        ("export", "out.jsonl"),
        ("backup", "out.tar"),
    ):
        done = shell(*words)
        said.append(done.stdout + done.stderr)
    return said


class InProcessShell:
    """Runs `ragfm` in this process, which has loaded the libraries, and in the current folder."""

    def __call__(self, *words: str | Path, code: int = 0) -> str:
        from click.testing import CliRunner

        from ragfm.cli import ragfm
        from ragfm.core.errors import RagfmError

        done = CliRunner().invoke(ragfm, [*map(str, words)], standalone_mode=False)
        if isinstance(done.exception, RagfmError):
            assert code == 1
            return done.exception.message
        if done.exception:
            raise done.exception
        assert (done.return_value or 0) == code
        return done.stdout

    def json(self, *words: str | Path) -> Any:
        return json.loads(self(*words, "--json"))


def _run(command: Sequence[str], folder: Path, env: Mapping[str, str], streams: Sequence[Path]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for number, stream in enumerate(streams):
        os.dup2(os.open(stream, os.O_RDWR | os.O_APPEND), number)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    sys.argv = [*command]

    from support.judges import use_judge

    use_judge(scripted=True)
    from ragfm.cli import main

    main()
