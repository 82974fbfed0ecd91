"""An adapter in the form that another reader wants, and whether both readers then say the same."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragfm.core.errors import DataError, UnsupportedError
from ragfm.evaluation.answer_matching import token_f1
from ragfm.models.adapters import GGUF, GGUF_BASE, GGUF_PROMPT, check_adapter, read_record
from ragfm.models.model_lookup import find_model, weights_sha256
from ragfm.training.adapter_folder import save_model
from ragfm.training.base_model import Base
from ragfm.training.examples import Example
from ragfm.training.gguf_lora import LICENCE, Shape, peft_to_gguf
from ragfm.training.gguf_merge import Quantisation, merge_gguf
from ragfm.training.methods import load_peft
from ragfm.training.output_checks import check_file, check_folder, check_no_adapter
from ragfm.training.peft_conversion import gguf_file, peft_form, record_beside, to_peft
from ragfm.training.validation import greedy
from ragfm.training.weight_identity import check_weights

_TOKENS = 48  # of a text that is compared


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many texts two readers say alike. `f1`: the mean token F1 between them; `different`: those that differ."""

    prompts: int
    equal: int
    f1: float
    different: tuple[tuple[str, str], ...]


def export_adapter(
    adapter: str | Path, form: str, *, out: str | Path | None = None, base: str | None = None, dtype: str = "f16",
    quantisation: Quantisation | None = None,
) -> Path:  # fmt: skip
    """Write an adapter as `gguf`, `merged` or `peft`; gives where it is.

    `base` is by default the model it was trained on; for a GGUF adapter, and for `merged` with a `quantisation`, it may
    be a GGUF file of that model, which is compared with it. `merged` gives a folder of safetensors, or with a
    `quantisation` a GGUF file, from a base that is one. `out` may be a folder for an `adapter.gguf`.

    Raises UnsupportedError for what the form can't hold, AdapterMismatchError for another base, and DataError where
    `out` would replace the base, or what ragfm has not written.
    """
    path = Path(adapter).expanduser()
    if file := gguf_file(path):
        return _from_gguf(file, form, out, base, quantisation)
    record = read_record(path)
    if form == "peft":
        raise UnsupportedError(f"{path} is in PEFT's form already.", "Name a GGUF adapter.")
    name = base or record.base["name"]
    if record.method == "full":
        raise UnsupportedError(f"{path} has whole weights, not an adapter.", "Name the folder as the reader.")
    if form == "gguf":
        target = Path(out or path)
        target = target / GGUF if target.is_dir() else target
        check_file(target, find_model(name, "reader"))
        target.parent.mkdir(parents=True, exist_ok=True)
        loaded, serving = _bases(path, base)
        about = {GGUF_BASE: weights_sha256(serving), GGUF_PROMPT: record.prompt}
        about |= {LICENCE: record.licence} if record.licence else {}
        peft_to_gguf(path, target, Shape.of(loaded.model.config), dtype=dtype, about=about)
        return target
    if out is None:
        raise DataError("Whole weights need a place of their own.", "Name it with --out.")
    if quantisation:
        return _merged_gguf(path, Path(out), name, quantisation)
    if record.method in ("prefix", "prompt"):
        raise UnsupportedError(f"{record.method} puts tokens before the prompt: no weights hold them.",
                               "It serves with transformers and peft alone.")  # fmt: skip
    check_folder(Path(out), find_model(name, "reader"), adapter=path)
    loaded = _base(name, path)
    save_model(with_adapter(loaded, path).merge_and_unload(), loaded, Path(out), whole=True)
    return Path(out)


def with_adapter(base: Base, folder: str | Path) -> Any:
    """The model with an adapter of PEFT's form, ready to be asked."""
    return load_peft().PeftModel.from_pretrained(base.model, str(folder)).eval()


def compare_readers(
    adapter: str | Path, gguf: str | Path, examples: Sequence[Example], *, base: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Agreement:  # fmt: skip
    """Ask all prompts of transformers with the adapter, and of llama.cpp with the GGUF adapter, both greedily.

    llama.cpp needs the base as a GGUF file, `base`, if it was not trained on one. What it multiplies is rounded
    otherwise, so that a text may turn where two tokens are nearly as likely.
    """
    from ragfm.core.types import Sampling
    from ragfm.generation.readers import load_reader

    folder = Path(adapter).expanduser()
    loaded, serving = _bases(folder, base)
    if not serving.is_file():
        raise UnsupportedError(f"llama.cpp reads GGUF files, and {serving} is a folder.", "Name the file: --base.")
    if not examples:
        raise DataError("There is no prompt to compare by.", "Name a file of examples.")
    model = with_adapter(loaded, folder)
    reader = load_reader(f"llama-cpp:{serving}")
    sampling = Sampling(max_tokens=_TOKENS, adapter=str(gguf))
    pairs = []
    for number, example in enumerate(examples, 1):
        one = greedy(model, loaded, loaded.prompt(example.messages), _TOKENS)
        with reader.stream(example.messages, sampling) as stream:
            other = "".join(stream).strip()
        pairs.append((one, other))
        if progress:
            progress(number, len(examples))
    different = tuple(pair for pair in pairs if pair[0] != pair[1])
    f1 = sum(1.0 if one == other else token_f1(one, other) for one, other in pairs) / len(pairs)
    return Agreement(len(pairs), len(pairs) - len(different), round(f1, 4), different)


def _merged_gguf(path: Path, out: Path, name: str, quantisation: Quantisation) -> Path:
    base = find_model(name, "reader")
    if not base.is_file():
        raise UnsupportedError(f"{base} is a folder, and what is quantised is a GGUF file.",
                               "Name a GGUF file of it with --base, or leave --quantise out.")  # fmt: skip
    check_file(out, base, adapter=path if path.is_file() else path / GGUF)
    out.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        check_adapter(path, base)
        merge_gguf(base, path, out, quantisation)
        return out
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        adapter = export_adapter(path, "gguf", out=Path(folder) / GGUF, base=name, dtype="f32")
        merge_gguf(base, adapter, out, quantisation)
    return out


def _bases(adapter: Path, name: str | None) -> tuple[Base, Path]:
    """The model that an adapter was trained on, and what it is to serve over: the same, or a GGUF file of it."""
    trained = read_record(adapter).base
    serving = find_model(name or trained["name"], "reader")
    if name is None or serving.is_dir() or weights_sha256(serving) == trained["sha256"]:
        return _base(name or trained["name"], adapter), serving
    loaded = _base(trained["name"], adapter)
    check_weights(loaded.model, serving)
    return loaded, serving


def _base(name: str, adapter: Path) -> Base:
    base = Base(name)
    check_adapter(adapter, base.path)
    return base


def _from_gguf(
    file: Path, form: str, out: str | Path | None, base: str | None, quantisation: Quantisation | None
) -> Path:  # fmt: skip
    """What is in GGUF form alone, in another one."""
    if form == "gguf":
        raise UnsupportedError(f"{file} is a GGUF adapter already.", "It serves over the file that it was made for.")
    beside = record_beside(file)
    name = base or (beside.base["name"] if beside else None)
    if out is None or name is None:
        raise DataError("From GGUF it needs to know the base, and a place.", "Name them with --base and --out.")
    target = Path(out)
    if form == "merged" and quantisation:
        return _merged_gguf(file, target, name, quantisation)
    check_folder(target, find_model(name, "reader"), adapter=file)
    if form == "peft":
        check_no_adapter(target)
    loaded = Base(name)
    if form == "merged":
        with peft_form(file, loaded) as folder:
            save_model(with_adapter(loaded, folder).merge_and_unload(), loaded, target, whole=True)
    else:
        to_peft(file, loaded, target)
    return target
