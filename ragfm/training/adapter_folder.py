"""What a training leaves: the adapter's folder, its record, and a page with the curve of the loss."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ragfm import __version__
from ragfm.core.durable_files import sync_file, sync_folder, write_durably
from ragfm.core.errors import DataError
from ragfm.core.output_folder import make_output
from ragfm.evaluation.html_report import html_page, settings_section
from ragfm.evaluation.plots import lines
from ragfm.generation.prompt import prompt_fingerprint
from ragfm.models.adapters import CHECKPOINT, RECORD, AdapterRecord, trained_weights_sha256
from ragfm.models.model_lookup import hide_progress_bar
from ragfm.training.base_model import Base
from ragfm.training.checkpoint import BEST, saving
from ragfm.training.trainer import Training

PAGE = "training.html"


def finish(
    training: Training, numbers: Mapping[str, Any], *, card: Mapping[str, Any], licence: str | None = None
) -> AdapterRecord:
    """Write the adapter of a training that has ended; the record comes last, then the checkpoint goes.

    `card` is that of the examples; without one, they are taken to be of this version's prompt. Without a
    `licence` that of the adapter holds from which the training went on.
    """
    if not training.settled:
        raise DataError("The training has not ended.", "Run it to its end.")
    folder, base = training.folder, training.base
    save_model(training.model, base, folder, whole=training.settings.method.method == "full")
    record = AdapterRecord(
        method=training.settings.method.method,
        base={"name": base.name, "sha256": base.sha256},
        prompt=str(card.get("prompt") or prompt_fingerprint()),
        weights=trained_weights_sha256(folder),
        data=card,
        settings=training.facts,
        numbers=numbers,
        licence=licence or training.licence,
        ragfm=__version__,
    )
    write_durably(folder / PAGE, render_page(training, record).encode())
    write_durably(folder / RECORD, record.to_json())
    for name in (CHECKPOINT, BEST):
        (folder / name).unlink(missing_ok=True)
    return record


def save_model(model: Any, base: Base, folder: Path, *, whole: bool) -> None:
    """Write an adapter as PEFT does, or a whole model with its tokenizer, as safetensors; files come by renaming."""
    make_output(folder)
    new = folder / ".new"
    shutil.rmtree(new, ignore_errors=True)
    try:
        with saving(folder):
            if whole:
                with hide_progress_bar():
                    plain(model).save_pretrained(new)
                base.tokenizer.save_pretrained(new)
            else:
                model.save_pretrained(new, save_embedding_layers=False)
        (new / "README.md").unlink(missing_ok=True)  # PEFT's form of a model card, not filled in
        files = sorted(new.iterdir())
        for file in files:
            sync_file(file)
            file.replace(folder / file.name)
        names = {file.name for file in files}
        for old in folder.glob("model*.safetensors*"):  # a model that was there may have been in more files
            if whole and old.name not in names:
                old.unlink()
        sync_folder(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def plain(model: Any) -> Any:
    """The model without what says that its file was quantised, which else could not be loaded again."""
    import torch
    from transformers import AutoModelForCausalLM

    config = type(model.config).from_dict(model.config.to_dict())
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    return fresh


def render_page(training: Training, record: AdapterRecord) -> str:
    """The page's text: the curves, and how it was trained."""
    state, numbers = training.state, record.numbers
    judge = training.settings.judge
    series: dict[str, list[tuple[float, float]]] = {"loss": [(float(at), loss) for at, loss in state.losses]}
    series[f"validation: {judge}"] = [(float(at), value) for at, value in state.valid]
    title = f"Training: {record.method} on {record.base['name']}"
    told = (
        f"{numbers['examples']} examples, {numbers['steps']} of {numbers['of_steps']} steps, the weights of step "
        f"{numbers['kept_step']} kept; {numbers['learned']:,} of {numbers['parameters']:,} numbers learned in "
        f"{numbers['seconds']:.0f} s"
    )
    about = {"numbers": dict(numbers), "settings": dict(record.settings), "data": dict(record.data)}
    return html_page(title, [f"<h1>{escape(title)}</h1>", f'<p class="dim">{escape(told)}</p>',
                        "<h2>Loss of a completion's token</h2>", lines(series, "step", "Loss by step"),
                        "<h2>How it was run</h2>", settings_section(about)])  # fmt: skip
