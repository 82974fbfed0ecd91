"""A choice of settings, stored with its evidence: in `ragfm.toml`, and beside it in `ragfm-tune.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfm.core.config import SETTINGS_FILE, Settings, load_settings
from ragfm.core.durable_files import beside
from ragfm.core.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from ragfm.core.calibration import Calibration
    from ragfm.evaluation.calibration import CalibrationReport
    from ragfm.evaluation.search_tuning import Choice, TuneReport

EVIDENCE = "ragfm-tune.json"
CONFIDENCE_EVIDENCE = "ragfm-confidence.json"


def store_choice(report: TuneReport, folder: Path) -> list[Path]:
    """Write the evidence, and where the best was adopted, its settings into `ragfm.toml`; gives the files written.

    What else stands in `ragfm.toml`, comments and order included, stays as it is. Raises ConfigError where it can't be
    read, or the settings would not hold.
    """
    load_settings(folder)  # what is wrong there already is said before anything is written
    written = []
    if report.adopted:
        _replace(folder / SETTINGS_FILE, _with(folder / SETTINGS_FILE, choice_keys(report.best, report.current)))
        written.append(folder / SETTINGS_FILE)
    evidence = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **asdict(report)}
    _replace(folder / EVIDENCE, json.dumps(evidence, indent=1, ensure_ascii=False) + "\n")
    return [*written, folder / EVIDENCE]


def store_calibration(report: CalibrationReport, folder: Path) -> list[Path]:
    """Write the evidence, and where it was adopted, the calibration into `ragfm.toml`; gives the files written."""
    load_settings(folder)
    written = []
    if report.adopted:
        _replace(folder / SETTINGS_FILE, _with(folder / SETTINGS_FILE, calibration_keys(report.calibration)))
        written.append(folder / SETTINGS_FILE)
    evidence = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **asdict(report)}
    _replace(folder / CONFIDENCE_EVIDENCE, json.dumps(evidence, indent=1, ensure_ascii=False) + "\n")
    return [*written, folder / CONFIDENCE_EVIDENCE]


def write_keys(folder: Path, sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Set keys of `ragfm.toml` by section, `""` for those of none; None takes a key away. All else stays as it is.

    Raises ConfigError where the file can't be read, or would not hold.
    """
    load_settings(folder)
    _replace(folder / SETTINGS_FILE, _with(folder / SETTINGS_FILE, sections))


def choice_keys(best: Choice, current: Choice) -> dict[str, dict[str, Any]]:
    """The keys of `ragfm.toml` that a choice sets, by section."""
    search: dict[str, Any] = {"fusion": best.fusion, "candidates": best.candidates}
    if best.fusion == "convex" and best.weight is not None:
        search["weight"] = best.weight
    sections = {"search": search}
    if best.chunk_size != current.chunk_size:
        sections["chunk"] = {"size": best.chunk_size}
    return sections


def calibration_keys(calibration: Calibration) -> dict[str, dict[str, Any]]:
    """The key of `ragfm.toml` that a calibration is, in its section."""
    return {"ask": {"confidence": {key: value for key, value in asdict(calibration).items() if value is not None}}}


def toml_writer() -> Any:
    """The package that writes `ragfm.toml`; to be asked for before what is to be written takes hours to find.

    Raises MissingExtraError.
    """
    try:
        import tomlkit
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"To write {SETTINGS_FILE}, the module {error.name!r} is needed, which is not installed.",
            "Install it with `pip install 'ragfm[eval]'`.",
        ) from error
    return tomlkit


def _with(path: Path, sections: Mapping[str, Mapping[str, Any]]) -> str:
    library = toml_writer()
    document = library.parse(path.read_text(encoding="utf-8") if path.is_file() else "")
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
        raise ConfigError(f"{path} would not hold with the new settings: {error}.", "Nothing was written.") from error
    return text


def _replace(path: Path, text: str) -> None:
    temporary = beside(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        if path.exists():
            temporary.chmod(path.stat().st_mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
