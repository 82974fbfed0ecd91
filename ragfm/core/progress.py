"""Progress of long jobs, reported through one callback type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: `done` of `total` units in a named `stage` ("embedding", "training", …).

    `total` is None while it is unknown. `figures` holds further numbers of the job by name, such as `chunks` for an
    ingest or `loss` for a training run.
    """

    stage: str
    done: int
    total: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


ProgressCallback: TypeAlias = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Do nothing: the default callback."""


def with_stage(progress: ProgressCallback, stage: str) -> ProgressCallback:
    """A callback that reports the progress of a part under the name that it has in the whole job."""
    return lambda done: progress(replace(done, stage=stage))
