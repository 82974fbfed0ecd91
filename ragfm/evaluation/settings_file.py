"""Store tuned settings and calibrations in `ragfm.toml`, and the evidence for them in a JSON file next to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ragfm.core.config import SETTINGS_FILE, Settings, load_settings, settings_path
from ragfm.core.durable_files import write_durably
from ragfm.core.errors import ConfigError, needs_extra
from ragfm.core.promise import AnsweredPromise, VerifiedPromise
from ragfm.evaluation.confidence_calibration import CalibrationReport
from ragfm.evaluation.search_tuning import TuneReport

EVIDENCE = "ragfm-tune.json"
CONFIDENCE_EVIDENCE = "ragfm-confidence.json"


def store_weight(report: TuneReport, place: Path) -> list[Path]:
    """Write the evidence and, if the best weight was adopted, the weight; returns the files written.

    `place` is the settings file, or its folder. Other content of the file is kept, including comments and order. Raises
    ConfigError if the file cannot be read, or would become invalid.
    """
    return _store(report, place, EVIDENCE, {"search": {"weight": report.best.weight}})


def store_calibration(report: CalibrationReport, place: Path) -> list[Path]:
    """Write the evidence and, if it was adopted, the calibration; returns the files written.

    Other content of `ragfm.toml` is kept. Raises ConfigError as `store_weight` does.
    """
    confidence = {key: value for key, value in asdict(report.calibration).items() if value is not None}
    return _store(report, place, CONFIDENCE_EVIDENCE, {"ask": {"confidence": confidence}})


def store_promise(promise: VerifiedPromise, place: Path) -> list[Path]:
    """Write a promise, with the `wrong_cost` of one about answers; returns the files written.

    Raises ConfigError as `store_weight` does.
    """
    if isinstance(promise, AnsweredPromise):
        write_keys(place, {"ask": {"wrong_cost": promise.wrong_cost, "answered_guarantee": asdict(promise)}})
    else:
        write_keys(place, {"ask": {"guarantee": asdict(promise)}})
    return [settings_path(place)]


def write_keys(place: Path, sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Set keys of `ragfm.toml` by section, `""` for top-level keys; None removes a key. Other content is kept.

    Raises ConfigError if the file cannot be read, or would become invalid.
    """
    load_settings(place)
    path = settings_path(place)
    library = import_tomlkit()
    document = library.parse(path.read_text(encoding="utf-8-sig") if path.is_file() else "")
    for section, values in sections.items():
        table = document.setdefault(section, library.table()) if section else document
        for key, value in values.items():
            if value is None:
                table.pop(key, None)
            else:
                table[key] = value
    text: str = library.dumps(document)
    try:
        Settings(**library.parse(text).unwrap())
    except ValueError as error:
        raise ConfigError(f"{path} would be invalid with the new settings: {error}.", "Nothing was written.") from error
    write_durably(path, text.encode(), mode=path.stat().st_mode & 0o777 if path.exists() else None)


def import_tomlkit() -> Any:
    """Import the package that writes `ragfm.toml`. Call it before a long job whose result is to be written.

    Raises MissingExtraError if it is not installed.
    """
    with needs_extra(f"Writing {SETTINGS_FILE}", "eval"):
        import tomlkit
    return tomlkit


def _store(
    report: TuneReport | CalibrationReport, place: Path, evidence_name: str, keys: Mapping[str, Mapping[str, Any]]
) -> list[Path]:
    load_settings(place)  # reports errors of an invalid file before anything is written
    path, written = settings_path(place), []
    if report.adopted:
        write_keys(place, keys)
        written.append(path)
    evidence = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **asdict(report)}
    content = json.dumps(evidence, indent=1, ensure_ascii=False) + "\n"
    write_durably(path.with_name(evidence_name), content.encode())
    return [*written, path.with_name(evidence_name)]
