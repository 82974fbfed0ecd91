"""Where a training stands, in one file: whole or not at all, and never a pickle.

What is learned, the optimizer's moments and the state of chance are tensors; all else is JSON in the file's head.
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

BEST = "best.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """Replace a file of tensors at once. Raises OSError, on a full disk too, and leaves the old file."""
    temporary = temporary_path(path)
    try:
        with saving(path):
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary,
                      metadata={"about": json.dumps(about)})  # fmt: skip
        sync_file(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """What safetensors can't write, as on a full disk, is an OSError about this path, not an error of its own."""
    try:
        yield
    except SafetensorError as error:
        said = re.search(r"os error (\d+)", str(error))
        code = int(said[1]) if said else errno.EIO
        raise OSError(code, os.strerror(code) if said else str(error), str(path)) from error


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors, and what was written about them."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            return tensors, json.loads(file.metadata()["about"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedModelError(f"{path} can't be read: {error}.", "Remove it, and train from the start.") from error


def learned(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What is trained, by name; of a weight that is used twice the first name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, about: Mapping[str, Any],
    chance_then: Mapping[str, torch.Tensor] | None = None,
) -> None:  # fmt: skip
    """Write where a training stands, with the state of chance, by default that of now."""
    tensors = {f"model.{name}": parameter for name, parameter in learned(model).items()}
    for name, parameter in learned(model).items():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS if moment in state}
    write_tensors(path, {**tensors, **(chance_then or chance())}, about)


def load(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Go back to where a training stood; gives what was written about it."""
    tensors, about = read_tensors(path)
    put(model, tensors)
    for name, parameter in learned(model).items():
        if f"exp_avg.{name}" in tensors:
            moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in _MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(about["step"])), **moments}
    torch.set_rng_state(tensors["chance.cpu"])
    if "chance.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["chance.cuda"])
    return about


def put(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Set what is trained."""
    with torch.no_grad():
        for name, parameter in learned(model).items():
            parameter.copy_(tensors[f"model.{name}"])


def check_same(path: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise DataError where a checkpoint is of another training, and name what differs."""
    different = list(_differences(there, json.loads(json.dumps(now))))
    if different:
        raise DataError(f"{path} is of another training: {', '.join(different)}.", "Name another folder, or remove it.")


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in {**there, **now}:
        if there.get(key) != now.get(key):
            yield f"{key} {str(there.get(key))[:40]} there, {str(now.get(key))[:40]} now"


def chance() -> dict[str, torch.Tensor]:
    """The state of chance."""
    states = {"chance.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["chance.cuda"] = torch.cuda.get_rng_state()
    return states
