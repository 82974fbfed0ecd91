"""Progress of a job's parts, reported under the names that the parts have in the job."""

from __future__ import annotations

from dataclasses import replace

from ragfm.core.progress import Progress, ProgressCallback


def with_stage(progress: ProgressCallback, stage: str) -> ProgressCallback:
    """A callback that reports to `progress` under the name `stage`."""

    def report(done: Progress) -> None:
        progress(replace(done, stage=stage))

    return report
