"""Run the command line, in a process of its own or in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HIT_KEYS = {
    *("uri", "name", "page", "place", "start", "end", "lines", "headings", "text", "score", "scores"),
    "chunk_id",
}


class Shell:
    """Runs `ragfm` in a folder, with the embedder `hashing` by default."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = os.environ | {"RAGFM_EMBEDDER": "hashing", "HF_HUB_OFFLINE": "1"}

    def __call__(self, *words: str | Path, code: int = 0, typed: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from ragfm.cli import main; main()", *map(str, words)]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.env,
            input=typed,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *words: str | Path, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code).stdout)


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
