"""llama.cpp, as its reader and its embedder share it: loading a model, its log, its errors.

The library is imported here alone, since what is set before that must be set first.

It is called through its C interface: the `Llama` class of llama-cpp-python sends the whole process's stdout and stderr
to /dev/null while it loads, fails on tokens of more than 32 bytes, and reuses its cache in a way that changes greedy
text.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from pathlib import Path
from typing import Any

# llama.cpp's threads wait for each other hundreds of times a token, and OpenMP's wait spins for milliseconds: where
# another program wants a core, 60 tokens took 2 to 40 s, after 300 turns of spinning 1.3 s, and 0.4 s alone either way.
os.environ.setdefault("GOMP_SPINCOUNT", "300")

import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from ragfm.core.errors import DamagedModelError
from ragfm.models.model_lookup import is_pinned
from ragfm.models.model_probe import try_loading

__all__ = [
    "Jinja2ChatFormatter",
    "after_c",
    "free",
    "free_with",
    "last_error",
    "llama_cpp",
    "load_model",
]

_log = logging.getLogger(__name__)


def load_model(path: Path) -> Any:
    """A model, with layers on the GPU where llama.cpp was built for one. Raises DamagedModelError.

    One that is neither pinned nor known here is tried in another process first.
    """
    if not is_pinned(path):
        try_loading(path)
    llama_cpp.llama_log_set(_forward_log, None)
    llama_cpp.llama_backend_init()
    how = llama_cpp.llama_model_default_params()
    how.n_gpu_layers = -1
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), how)
    if not model:
        raise DamagedModelError(f"llama.cpp can't load {path}: {last_error()}", "Get the file again.")
    return model


def free(model: Any, context: Any) -> None:
    """Give the memory of a model and its context back."""
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


def free_with(owner: object, function: Any, handle: Any) -> None:
    """Call `function(handle)` when `owner` is gone: not at exit, and not in a forked process.

    At either, another thread may have been using it; the memory goes with the process.
    """
    weakref.finalize(owner, _free_here, os.getpid(), function, handle).atexit = False


def _free_here(process: int, function: Any, handle: Any) -> None:
    if os.getpid() == process:
        function(handle)


_GGML_LOG_ERROR = 4
_errors = threading.local()


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
def _forward_log(level: int, text: bytes, _: Any) -> None:
    """To the log at DEBUG, since what matters becomes an exception; errors are kept for its message."""
    try:
        line = text.decode(errors="replace").strip()
        if level == _GGML_LOG_ERROR:
            _errors.last = line
        if line:
            _log.debug(line)
    except KeyboardInterrupt:  # can't pass through C; see after_c
        _errors.interrupted = True


def after_c() -> None:
    """Raise the Ctrl-C that came while C code was calling back."""
    if getattr(_errors, "interrupted", False):
        _errors.interrupted = False
        raise KeyboardInterrupt


def last_error() -> str:
    """What llama.cpp said last, in this thread, of what went wrong."""
    return getattr(_errors, "last", "it does not say why")
