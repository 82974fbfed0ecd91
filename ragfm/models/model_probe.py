"""A model or an adapter that is new here is used in a process of its own first: llama.cpp may end the one that does.

Of 500 randomly damaged files it ended some, behind every check of the header; an adapter whose matrices are of whole
numbers, or of three dimensions, ends it when a token is evaluated. Once it went well it is remembered, by the file's
path, size and time of change, since its hash takes longer than to load it.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from ragfm.core.cache import cache_folder, file_identity
from ragfm.core.errors import DamagedModelError
from ragfm.models.gguf_header import read_header

__all__ = ["try_loading"]

_SECONDS = 60.0
_BYTES_PER_SECOND = 20e6
"""Slower than any disk from which one would load a model."""

# Loads it, and evaluates some words, then one token more. What is not there in an embedding model is left out.
_CODE = """
import ctypes, sys
import llama_cpp as l
l.llama_backend_init()
model = l.llama_model_load_from_file(sys.argv[1].encode(), l.llama_model_default_params())
if not model:
    sys.exit(3)
settings = l.llama_context_default_params()
settings.n_ctx = settings.n_batch = settings.n_ubatch = 64
settings.n_threads = settings.n_threads_batch = 1
context = l.llama_init_from_model(model, settings)
if not context:
    sys.exit(4)
if sys.argv[2:]:
    adapter = l.llama_adapter_lora_init(model, sys.argv[2].encode())
    if not adapter:
        sys.exit(6)
    adapters, scales = (l.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(1.0)
    if l.llama_set_adapters_lora(context, adapters, 1, scales):
        sys.exit(7)
vocab = l.llama_model_get_vocab(model)
tokens = (l.llama_token * 64)()
count = l.llama_tokenize(vocab, b"Hello, water!", 13, tokens, 64, True, True)
piece = ctypes.create_string_buffer(256)
for token in range(l.llama_vocab_n_tokens(vocab)):
    l.llama_token_to_piece(vocab, token, piece, 256, 0, True)
for size in (count, 1):
    if count < 1 or l.llama_decode(context, l.llama_batch_get_one(tokens, size)):
        sys.exit(5)
"""
_log = logging.getLogger(__name__)


def try_loading(model: Path, adapter: Path | None = None) -> None:
    """A model, or an adapter with it. Raises DamagedModelError where it can't be used, ModelNotFoundError for none."""
    files = [adapter or model, *([model] if adapter else [])]
    path, mark = files[0], _mark(*files)
    if mark.exists():
        return
    read_header(path)
    if not sys.executable:
        return
    _log.info("Trying %s in a process of its own, since it is new here.", path)
    command = [sys.executable, "-c", _CODE, str(model), *([str(adapter)] if adapter else [])]
    size = sum(file.stat().st_size for file in files)
    try:
        done = subprocess.run(  # noqa: S603  this Python, and paths that are only arguments
            command, capture_output=True, check=False, timeout=_SECONDS + size / _BYTES_PER_SECOND
        )
    except subprocess.TimeoutExpired:
        raise DamagedModelError(f"llama.cpp does not end loading {path}.", "Get the file again.") from None
    if done.returncode and adapter:
        hint = "Get the file again, or one that was made for this model."
        raise DamagedModelError(f"{path} is no LoRA adapter for {model}: {_why(done)}.", hint)
    if done.returncode:
        raise DamagedModelError(f"llama.cpp can't load {path}: {_why(done)}.", "Get the file again.")
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        _log.info("That %s can be loaded is not remembered in %s: %s", path, mark.parent, error)


def _mark(path: Path, *others: Path) -> Path:
    """The file that says that the trial went well."""
    more = (version("llama-cpp-python"), *map(file_identity, others))
    return cache_folder() / "tried" / file_identity(path, *more)


def _why(done: subprocess.CompletedProcess[bytes]) -> str:
    """The line that says what went wrong, if there is one."""
    lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines()]
    said = [line for word in ("error", "assert", "failed") for line in lines if word in line.lower()]
    ended = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
    return (said[0] if said else f"it ended with {ended}").rstrip(".")
