"""First use of a model or adapter file in a child process, because llama.cpp aborts on some damaged files.

Of 500 randomly damaged files, some passed every check of the header and still aborted llama.cpp. An adapter whose
matrices hold integers, or have three dimensions, aborts it when a token is evaluated. A file that passed is remembered
by path, size and modification time: hashing it would take longer than loading it.
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

_BASE_SECONDS = 60.0
_BYTES_PER_SECOND = 20e6
"""Slower than any disk that models are loaded from; the timeout grows with the size of the files."""

# Load the model, evaluate a few words, then one more token. Use nothing that an embedding model lacks.
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


def probe_model(model: Path, adapter: Path | None = None) -> None:
    """Load a model, or an adapter for it, in a child process. Raises DamagedModelError or ModelNotFoundError."""
    path, files = adapter or model, [model, adapter] if adapter else [model]
    versions = (version("llama-cpp-python"), *([file_identity(model)] if adapter else []))
    passed = cache_folder() / "tried" / file_identity(path, *versions)
    if passed.exists():
        return
    read_header(path)
    if not sys.executable:
        return

    _log.info("Loading %s in a child process first, because the file is new here.", path)
    command = [sys.executable, "-c", _CODE, *map(str, files)]
    size = sum(file.stat().st_size for file in files)
    try:
        done = subprocess.run(  # noqa: S603  this Python; the paths are only arguments
            command, capture_output=True, check=False, timeout=_BASE_SECONDS + size / _BYTES_PER_SECOND
        )
    except subprocess.TimeoutExpired:
        raise DamagedModelError(f"llama.cpp does not finish loading '{path}'.", "Download the file again.") from None
    if done.returncode and adapter:
        hint = "Download the file again, or use an adapter that was trained for this model."
        raise DamagedModelError(f"'{path}' is not a LoRA adapter for '{model}': {_failure(done)}.", hint)
    if done.returncode:
        why = _failure(done)
        hint = "Put all files of the model into one folder." if "GGUF split" in why else "Download the file again."
        raise DamagedModelError(f"llama.cpp cannot load '{path}': {why}.", hint)

    try:
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.touch()
    except OSError as error:
        _log.info("Cannot remember in %s that %s can be loaded: %s", passed.parent, path, error)


def _failure(done: subprocess.CompletedProcess[bytes]) -> str:
    """The first line of stderr that looks like an error, or the exit code or signal."""
    lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines()]
    for word in ("error", "assert", "failed"):
        for line in lines:
            if word in line.lower():
                return line.rstrip(".")
    return (
        f"it ended with signal {-done.returncode}" if done.returncode < 0 else f"it ended with code {done.returncode}"
    )
