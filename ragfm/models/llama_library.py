"""llama.cpp for the reader and the embedder: import, threads, model loading, log and errors.

This is the only module that imports `llama_cpp`. All computation of llama.cpp runs in ragfm's own threads: the
evaluation thread of a reader, or a thread for one call (`in_own_thread`).

The code uses llama.cpp's C interface. The `Llama` class of llama-cpp-python redirects stdout and stderr of the whole
process to /dev/null while it loads a model, fails on tokens of more than 32 bytes, and reuses its cache in a way that
changes greedy output.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from pathlib import Path
from typing import Any

from ragfm.core.errors import DamagedModelError, needs_extra
from ragfm.core.own_thread import in_own_thread
from ragfm.models.model_lookup import is_pinned
from ragfm.models.model_probe import probe_model

with needs_extra("Reading GGUF models", "llama-cpp"):
    import llama_cpp as llama_cpp  # the alias exports the name

_log = logging.getLogger(__name__)


@in_own_thread
def load_model(path: Path) -> Any:
    """Load a GGUF model, with its layers on the GPU if llama.cpp was built for one. Raises DamagedModelError.

    A file that is neither a bundled model nor known from an earlier run is first loaded in a child process.
    """
    if not is_pinned(path):
        probe_model(path)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = -1
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise DamagedModelError(f"llama.cpp cannot load '{path}': {last_error()}.", "Download the file again.")
    return model


def free_on_collection(owner: object, function: Any, handle: Any) -> None:
    """Call `function(handle)` when `owner` is garbage-collected, but not at exit and not in a forked process.

    In both of these cases, another thread may still have been using the handle; its memory is freed with the process.
    """
    process = os.getpid()
    weakref.finalize(owner, lambda: function(handle) if os.getpid() == process else None).atexit = False


_GGML_LOG_ERROR = 4
_thread_state = threading.local()


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
def _forward_log(level: int, text: bytes, _: Any) -> None:
    """Log llama.cpp's messages at DEBUG, and keep the last error for the message of an exception."""
    line = text.decode(errors="replace").strip()
    if level == _GGML_LOG_ERROR:
        _thread_state.last_error = line.rstrip(".")
    if line:
        _log.debug(line)


llama_cpp.llama_log_set(_forward_log, None)


def last_error() -> str:
    """The last error that llama.cpp logged in this thread, without a full stop."""
    return getattr(_thread_state, "last_error", "llama.cpp gives no reason")
