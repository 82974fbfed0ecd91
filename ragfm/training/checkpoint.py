"""Checkpoints: the file in which a training run saves its state, to be resumed after an interruption.

A training run into the folder `OUT` (`ragfm adapt train --out OUT`) saves into two files there:

    OUT/checkpoint.safetensors  trainable weights, optimizer moments, random state, step and curves: `save_checkpoint`
    OUT/best.safetensors        trainable weights of the best validation so far

`ragfm.training.training_loop` writes the checkpoint every minute, at Ctrl-C and at the end of training, and starts from
it if there is one. `ragfm.training.adapter_folder` deletes both files once the adapter is written. The training of a
retriever saves the same files in `OUT/.training/fit`.

Tensors are stored as safetensors, everything else as JSON in the file's metadata; there is no pickle. A file is
replaced atomically, so a checkpoint on disk is always complete.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ragfm.core.durable_files import sync_file, sync_folder, temporary_path
from ragfm.core.errors import DamagedModelError, DataError
from ragfm.models.adapters import BEST

_MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    configuration: Mapping[str, Any],
    state: Mapping[str, Any],
    random_state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write the trainable weights, the moments of AdamW, and the configuration and state of the training loop, as JSON.

    `state` needs a key `step`. `random_state` is by default the current one (`rng_state`).
    """
    tensors = weight_tensors(model)
    for name, parameter in trainable_parameters(model).items():
        moments = optimizer.state.get(parameter, {})
        tensors |= {f"{moment}.{name}": moments[moment] for moment in _MOMENTS if moment in moments}
    about = {"facts": configuration, "step": state["step"], "state": state}
    write_tensors(path, {**tensors, **(random_state or rng_state())}, about)


def load_checkpoint(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, configuration: Mapping[str, Any]
) -> dict[str, Any]:
    """Restore the model, the optimizer and the random state from a checkpoint; returns the state of the training loop.

    Raises DataError, which names the differences, if the checkpoint was saved with another configuration.
    """
    tensors, about = read_tensors(path)
    saved, current = about["facts"], json.loads(json.dumps(configuration))
    different = [
        f"{key} {str(saved.get(key))[:40]} there, {str(current.get(key))[:40]} now"
        for key in {**saved, **current}
        if saved.get(key) != current.get(key)
    ]
    if different:
        raise DataError(
            f"{path} belongs to a different training run: {', '.join(different)}.",
            "Use another output folder, or delete this one.",
        )
    set_weights(model, tensors)
    for name, parameter in trainable_parameters(model).items():
        if f"exp_avg.{name}" in tensors:
            moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in _MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(about["step"])), **moments}
    torch.set_rng_state(tensors["chance.cpu"])
    if "chance.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["chance.cuda"])
    return dict(about["state"])


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """Replace a safetensors file atomically. If that fails, raises OSError and keeps the old file."""
    temporary = temporary_path(path)
    try:
        with translate_safetensors_errors(path):
            contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, temporary, metadata={"about": json.dumps(about)})
        sync_file(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a file that `write_tensors` wrote, and its `about`. Raises DamagedModelError."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            return tensors, dict(json.loads(file.metadata()["about"]))
    except (FileNotFoundError, SafetensorError, ValueError, KeyError, TypeError) as error:
        hint = f"To train from the start, delete the checkpoint and {BEST} in {path.parent}."
        raise DamagedModelError(f"{path} cannot be read: {error}.", hint) from error


@contextmanager
def translate_safetensors_errors(path: Path) -> Iterator[None]:
    """Raise an OSError about `path` where safetensors raises its own error for a failed write."""
    try:
        yield
    except SafetensorError as error:
        match = re.search(r"os error (\d+)", str(error))
        code = int(match[1]) if match else errno.EIO
        raise OSError(code, os.strerror(code) if match else str(error), str(path)) from error


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name; tied weights appear once, under their first name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def weight_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trainable parameters under the names that `set_weights` takes."""
    return {f"model.{name}": parameter for name, parameter in trainable_parameters(model).items()}


def set_weights(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Set the trainable parameters from tensors named `model.NAME`."""
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            parameter.copy_(tensors[f"model.{name}"])


def rng_state() -> dict[str, torch.Tensor]:
    """The state of torch's random number generators, by the name it has in a checkpoint."""
    states = {"chance.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["chance.cuda"] = torch.cuda.get_rng_state()
    return states
