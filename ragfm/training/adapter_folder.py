"""The output folder of a training run: the adapter, its record, and a model card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ragfm import __version__
from ragfm.core.durable_files import sync_file, sync_folder, write_durably
from ragfm.core.errors import DataError
from ragfm.core.output_folder import make_output
from ragfm.generation.prompt import prompt_fingerprint
from ragfm.models.adapters import BEST, CHECKPOINT, RECORD, AdapterRecord, trained_weights_sha256
from ragfm.models.model_lookup import hide_progress_bar
from ragfm.training.adapter_card import CARD as MODEL_CARD
from ragfm.training.adapter_card import adapter_card, base_facts
from ragfm.training.base_model import Base
from ragfm.training.checkpoint import translate_safetensors_errors
from ragfm.training.trainer import Training


def write_adapter(
    training: Training, figures: Mapping[str, Any], *, card: Mapping[str, Any], licence: str | None = None
) -> AdapterRecord:
    """Write the adapter of a finished training run into its folder, the record last, then delete the checkpoint.

    `figures` is what `Training.run` returned, `card` the data card of the examples; without a card the examples are
    taken to be written for the prompt of this version. `licence` is by default that of the adapter that training
    started from. Raises DataError if the training run has not finished.
    """
    if not training.finished:
        raise DataError("The training run has not finished.", "Run it to the end.")
    folder, base = training.folder, training.base
    save_model(training.model, base, folder, full=training.settings.method == "full")
    record = AdapterRecord(
        method=training.settings.method,
        base=base_facts(base.name, base.path, "reader"),
        prompt=str(card.get("prompt") or prompt_fingerprint()),
        weights=trained_weights_sha256(folder),
        data=card,
        settings=training.configuration,
        numbers=figures,
        licence=licence or training.licence,
        ragfm=__version__,
    )
    write_durably(folder / MODEL_CARD, adapter_card(record).encode())
    write_durably(folder / RECORD, record.to_json())
    for name in (CHECKPOINT, BEST):
        (folder / name).unlink(missing_ok=True)
    return record


def save_model(model: Any, base: Base, folder: Path, *, full: bool) -> None:
    """Write an adapter in PEFT's format, or if `full` a model with its tokenizer. Files are replaced one by one.

    Raises OSError.
    """
    if full:
        # A copy without the note that the file was quantised, with which the saved model could not be loaded.
        config = type(model.config).from_dict(model.config.to_dict())
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            copy = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        copy.load_state_dict(model.state_dict(), assign=True)
        copy.tie_weights()
        copy.generation_config = model.generation_config
        model = copy
    make_output(folder)
    temporary = folder / ".new"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with translate_safetensors_errors(folder):
            if full:
                with hide_progress_bar():
                    model.save_pretrained(temporary)
                base.tokenizer.save_pretrained(temporary)
            else:
                model.save_pretrained(temporary, save_embedding_layers=False)
        (temporary / "README.md").unlink(missing_ok=True)  # PEFT's empty template of a model card
        files = sorted(temporary.iterdir())
        for file in files:
            sync_file(file)
            file.replace(folder / file.name)
        names = {file.name for file in files}
        for old in folder.glob("model*.safetensors*"):  # a previous model may have had more files
            if full and old.name not in names:
                old.unlink()
        sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
