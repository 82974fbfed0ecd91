"""Continual learning: train on new questions and the answer log, and adopt the result only if it is better.

    answer log, questions ─hash─┬→ learn ─examples→ train, starting from the served adapter → new adapter
                                └→ test ─evaluate before and after→ better, and old questions not worse?
    yes: `adapter` in ragfm.toml names the new adapter; `roll_back` undoes it, by the history in ragfm-adapters.json

The test compares what users get: both adapters are corrected and withheld by the current calibration, or neither is.
The calibration is then served with the new adapter, too; without it, a better adapter could give worse answers.

A refresh has a folder of its own, which holds examples, test questions, checkpoint, adapter, runs and the decision. An
interrupted refresh continues there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ragfm.citations.confidence import adapter_hash
from ragfm.collection import Collection
from ragfm.core.calibration import Calibration
from ragfm.core.config import load_settings, settings_path
from ragfm.core.durable_files import write_durably
from ragfm.core.errors import DataError, LogError, UnsupportedError
from ragfm.core.output_folder import make_output
from ragfm.core.progress import ProgressCallback, ignore_progress, with_stage
from ragfm.core.registry import plugin_and_model
from ragfm.evaluation.answer_evaluation import evaluate_answers
from ragfm.evaluation.answer_matching import normalize
from ragfm.evaluation.log_questions import questions_from_log, rated_entries
from ragfm.evaluation.question_sets import Question, fingerprint, load_jsonl
from ragfm.evaluation.retrieval_evaluation import collection_content, collection_facts
from ragfm.evaluation.run_comparison import Difference, compare_runs
from ragfm.evaluation.settings_file import calibration_keys, import_tomlkit, write_keys
from ragfm.generation.log_entries import LogEntry
from ragfm.generation.prompt import prompt_fingerprint
from ragfm.models.adapters import GGUF, METHODS, RECORD, Method, read_record
from ragfm.models.gguf_header import read_header
from ragfm.models.model_lookup import find_model, weights_sha256
from ragfm.rag import Rag
from ragfm.training.adapter_export import export_adapter
from ragfm.training.adapter_folder import write_adapter
from ragfm.training.base_model import Base
from ragfm.training.dataset import Dataset, Recipe, add_examples, write_dataset
from ragfm.training.examples import TRAIN, VALID, Example, examples_digest, read_card, read_examples
from ragfm.training.gguf_lora import ARCHITECTURES
from ragfm.training.held_out import load_held_out
from ragfm.training.log_examples import examples_from_log, is_outdated
from ragfm.training.raft import build_raft_dataset
from ragfm.training.train_settings import TrainSettings
from ragfm.training.trainer import Training

HISTORY = "ragfm-adapters.json"
DECISION = "refresh.json"
_TEST = "test.jsonl"
_INPUTS = "inputs.json"
_TEST_SHARE = 0.3
"""The share of new questions that are never trained on. A question is in the same part at every refresh."""
_SERVABLE_METHODS: Mapping[str, tuple[Method, ...]] = {
    "llama-cpp": ("lora", "qlora"),
    "transformers": ("lora", "qlora", "dora", "ia3", "prefix", "prompt"),
}


@dataclass(frozen=True, slots=True)
class RefreshSettings:
    """Settings of a refresh.

    - `training`: settings of the training run.
    - `questions`: JSONL file of new questions with answers about the collection.
    - `old`: JSONL file of questions about the collection whose answers must not get worse.
    - `replay`: folder of examples learned before, which are mixed in so that they are not forgotten.
    - `replayed`: number of replayed examples per new example.
    - `licence`: licence of questions and log, for the data card.
    """

    training: TrainSettings = TrainSettings(epochs=2, rate=1e-4, batch=8)  # noqa: RUF009  frozen
    questions: Path | None = None
    old: Path | None = None
    replay: Path | None = None
    replayed: float = 1.0
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class RefreshReport:
    """The result of a refresh.

    - `adopted`: whether the new adapter is served now.
    - `why`: the reason, as a sentence.
    - `folder`: the folder of the refresh, with the new adapter.
    - `examples`: number of training and validation examples.
    - `new`, `old`: token F1 after against before, over the new and the old test questions.
    - `numbers`: figures of the training run.
    """

    adopted: bool
    why: str
    folder: str
    examples: Mapping[str, int]
    new: Difference | None = None
    old: Difference | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)


def refresh(
    collection: Collection,
    folder: Path,
    settings: RefreshSettings = RefreshSettings(),
    *,
    progress: ProgressCallback | None = None,
) -> RefreshReport:
    """Train a new adapter in `folder` and adopt it if it is better; an interrupted refresh continues there.

    Sync the collection first. `next_folder` gives the folder. Progress has the stages "make examples", "train" and
    "answer SET, before" or "after", SET being `new` or `old`. Raises DataError if there is nothing to train on or to
    test with, UnsupportedError for a reader that cannot be trained here or a method that it does not serve, and
    MissingExtraError if ragfm.toml cannot be written.
    """
    report_progress = progress or ignore_progress
    rag = Rag(collection)
    plugin, model = check_refreshable(rag, settings)
    make_output(folder, mode=0o700)  # it will contain users' questions
    _prepare(rag, folder, settings, report_progress)
    test = load_jsonl(folder / _TEST, answers=True).questions
    figures = _train(rag, model, folder, settings, report_progress)
    adapter = str(_export(folder, model) if plugin == "llama-cpp" else folder)
    new = _compare(rag, adapter, test, folder / "new", report_progress)
    old = None
    if settings.old:
        old_questions = load_jsonl(settings.old, answers=True).questions
        old = _compare(rag, adapter, old_questions, folder / "old", report_progress)
    adopted, why = decide(new, old)
    card = read_card(folder / "examples")
    report = RefreshReport(adopted, why, str(folder), card["examples"], new, old, figures)
    if adopted:
        _adopt(collection.settings_file, folder, report, _calibration_for(rag, adapter))
    write_durably(folder / DECISION, json.dumps(asdict(report), indent=1, ensure_ascii=False).encode() + b"\n")
    return report


def check_refreshable(rag: Rag, settings: RefreshSettings) -> tuple[str, str]:
    """Plugin and model of the reader, if it can be trained here and serves the method. Raises as `refresh` does."""
    import_tomlkit()
    plugin, model = plugin_and_model("readers", rag.reader_name)
    if plugin not in _SERVABLE_METHODS:
        raise UnsupportedError(
            f"The reader {rag.reader_name} does not run in this process.", "Use a reader that runs on this machine."
        )
    if (method := _method(rag.sampling.adapter, settings)) not in _SERVABLE_METHODS[plugin]:
        raise UnsupportedError(
            f"{plugin} cannot serve adapters trained with {method}.",
            f"It serves {', '.join(_SERVABLE_METHODS[plugin])}.",
        )
    if plugin == "llama-cpp":
        architecture = read_header(find_model(model, "reader")).metadata.get("general.architecture")
        if architecture not in ARCHITECTURES.values():
            raise UnsupportedError(
                f"Adapters for GGUF models of the architecture '{architecture}' cannot be made.",
                f"Supported architectures: {', '.join(dict.fromkeys(ARCHITECTURES.values()))}.",
            )
    return plugin, model


def adapters_folder(collection: Collection, folder: str | Path | None = None) -> Path:
    """The folder of a collection's adapters: `folder`, by default `.ragfm-adapters` next to the collection.

    On PostgreSQL, it is `NAME-adapters` next to the settings file.
    """
    if folder:
        return Path(folder)
    database = collection.store.database
    if database.shared:
        return database.settings_file.with_name(f"{database.default_name}-adapters")
    return collection.path.with_name(f"{collection.path.name}-adapters")


def next_folder(
    collection: Collection, settings: RefreshSettings, adapters: str | Path | None = None
) -> tuple[Path, list[str]]:
    """The folder for a refresh, and the inputs that have changed since an interrupted one.

    That is the folder of an interrupted refresh with the same inputs, else a new one: `001`, `002`, … in the folder
    `adapters`, see `adapters_folder`.
    """
    parent = adapters_folder(collection, adapters)
    numbers = [int(path.name) for path in parent.glob("[0-9]*") if path.name.isdigit()] if parent.is_dir() else []
    last = max(numbers, default=0)
    folder, new_folder = parent / f"{last:03}", parent / f"{last + 1:03}"
    inputs = refresh_inputs(collection, settings)
    # A refresh whose adapter is served has ended, though it may have been killed before it wrote its decision.
    if not last or (folder / DECISION).exists() or collection.settings.adapter == str(folder.absolute()):
        return new_folder, []
    if not read_card(folder / "examples"):  # it was interrupted before anything was written
        return folder, []
    saved = json.loads((folder / _INPUTS).read_bytes()) if (folder / _INPUTS).is_file() else {}
    changed = [key for key in inputs if inputs[key] != saved.get(key)]
    return (new_folder if changed else folder), changed


def refresh_inputs(collection: Collection, settings: RefreshSettings) -> dict[str, Any]:
    """All that a refresh depends on, as JSON values: an interrupted refresh continues only with the same."""
    questions = load_jsonl(settings.questions, answers=True).questions if settings.questions else []
    old = load_jsonl(settings.old, answers=True).questions if settings.old else []
    inputs = {
        **collection_facts(collection, collection_content(collection)[1]),
        "settings": collection.settings.model_dump(mode="json", exclude={"sources", "files"}),
        "adapter": adapter_hash(Rag(collection).sampling.adapter),
        "log": _hash(json.dumps([*questions_from_log(_judged_entries(collection))])),
        "questions": fingerprint(questions, answers=True),
        "licence": settings.licence,
        "old": fingerprint(old, answers=True),
        "replay": settings.replay and examples_digest(read_examples(settings.replay / TRAIN)),
        "training": [asdict(settings.training), settings.replayed],
    }
    return dict(json.loads(json.dumps(inputs)))


def decide(new: Difference, old: Difference | None) -> tuple[bool, str]:
    """Whether to adopt an adapter, and why: it must be better on the new questions and not worse on the old ones."""
    change = f"F1 {new.a:.3f} → {new.b:.3f}, {new.difference:+.3f} [{new.low:+.3f}, {new.high:+.3f}], p = {new.p:.3f}"
    count = new.wins + new.losses + new.ties
    if new.noise or new.difference <= 0:
        result = "the change is within noise" if new.noise else "it is worse"
        return False, f"On {count} new questions {result}: {change}."
    if old and old.difference < 0 and not old.noise:
        return False, (
            f"It is better on {count} new questions ({change}), but worse on the old ones: "
            f"F1 {old.a:.3f} → {old.b:.3f}, p = {old.p:.3f}."
        )
    kept = "" if old is None else f" On the old ones it is not worse: F1 {old.a:.3f} → {old.b:.3f}."
    return True, f"On {count} new questions it is better, beyond noise: {change}.{kept}"


def roll_back(place: Path) -> tuple[str, str | None]:
    """Undo the last adopted refresh; returns the adapter that is no longer served and the one that is served again.

    `place` is the settings file, or its folder. Raises DataError if no refresh was adopted or `adapter` was changed
    since.
    """
    history = _read_history(place)
    if not history:
        raise DataError(f"No refresh was adopted in {settings_path(place).parent}.", "Run `ragfm adapt refresh` first.")
    last = history[-1]
    if load_settings(place).adapter != last["adapter"]:
        raise DataError(
            f"`adapter` in {settings_path(place)} is not the one that the last refresh adopted, {last['adapter']}.",
            "Set `adapter` there by hand.",
        )
    calibration = {"ask": {"confidence": last["confidence"]}} if "confidence" in last else {}
    write_keys(place, {"": {"adapter": last["before"]}, **calibration})
    _write_history(place, history[:-1])
    return last["adapter"], last["before"]


def _prepare(rag: Rag, folder: Path, settings: RefreshSettings, progress: ProgressCallback) -> None:
    """Write test questions and examples, unless an interrupted refresh has done so."""
    if read_card(folder / "examples"):
        return
    inputs = refresh_inputs(rag.collection, settings)
    given = load_jsonl(settings.questions, answers=True).questions if settings.questions else ()
    questions = list({normalize(question.text): question for question in given}.values())
    asked = {normalize(question.text) for question in questions}  # their answers take precedence over the log
    entries = [entry for entry in _judged_entries(rag.collection) if normalize(entry.query) not in asked]
    lines = list(
        questions_from_log(entry for entry in entries if _is_test(entry.query) and not is_outdated(rag, entry))
    )
    for question in questions:
        if not _is_test(question.text):
            continue
        line: dict[str, Any] = {"id": f"question-{question.id}", "question": question.text}
        line |= {"unanswerable": True} if question.unanswerable else {"answers": list(question.answers)}
        for gold in question.gold:
            span = {} if gold.start is None else {"start": gold.start, "end": gold.end}
            lines.append({**line, "uri": gold.uri, **span})
        if not question.gold:
            lines.append(line)
    if not lines:
        raise DataError(
            f"{len(entries)} judged answers in the log and {len(questions)} questions are too few to test with.",
            "Judge more answers (`ragfm log thumbs`), or add questions with answers.",
        )
    write_durably(folder / _TEST, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    write_durably(folder / _INPUTS, json.dumps(inputs).encode())  # before the card, which marks the end of this step
    write_dataset(_make_dataset(rag, entries, questions, folder, settings, progress), folder / "examples")


def _judged_entries(collection: Collection) -> list[LogEntry]:
    try:
        return rated_entries(collection.answer_log.entries())
    except LogError:
        return []


def _make_dataset(
    rag: Rag,
    entries: Sequence[LogEntry],
    questions: Sequence[Question],
    folder: Path,
    settings: RefreshSettings,
    progress: ProgressCallback,
) -> Dataset:
    """Examples from the questions and log entries that are not tested, and replayed examples."""
    recipe = Recipe(seed=settings.training.seed)
    held_out = load_held_out([folder / _TEST, *([settings.old] if settings.old else [])])
    held_out = replace(held_out, uris=frozenset())  # the questions share their documents with those that are learned
    new = [question for question in questions if not _is_test(question.text)]
    name = settings.questions and settings.questions.name
    about = {"sources": [{"name": name, "licence": settings.licence}], "reader": rag.reader_name}
    dataset = None
    if new:
        dataset = build_raft_dataset(
            rag, new, recipe, held_out=held_out, about=about, allow_empty=True, progress=progress
        )
    # Outdated entries are not tested either; `examples_from_log` counts them as left out.
    learned_entries = [entry for entry in entries if not _is_test(entry.query) or is_outdated(rag, entry)]
    logged, left_out = examples_from_log(rag, learned_entries, held_out=held_out)
    made = [*logged, *([*dataset.train, *dataset.valid] if dataset else [])]
    # A replayed example with the same question would replace the new one.
    excluded = held_out.with_questions(str(example.meta["question"]) for example in made)
    sources: list[Mapping[str, Any]] = []
    if logged:
        sources.append({"name": "the answer log", "licence": settings.licence, "left_out": dict(left_out)})
    replayed: list[Example] = []
    if settings.replay:
        prompt = prompt_fingerprint(documents_only=rag.collection.settings.ask.mode != "open", strategy=rag.strategy)
        card = read_card(settings.replay)
        if card.get("prompt", prompt) != prompt:
            raise DataError(
                f"The examples in {settings.replay} were made for a different prompt.",
                "Create them again with `ragfm adapt data`.",
            )
        old = []
        for example in read_examples(settings.replay / TRAIN):
            question = str(example.meta.get("question", ""))
            original = str(example.meta.get("changed_from", question))
            if not (_is_test(original) or excluded.contains_question(original) or excluded.contains_question(question)):
                old.append(example)
        old.sort(key=lambda example: _hash(f"{settings.training.seed} {example.messages}"))
        for index, example in enumerate(old[: round(settings.replayed * len(made))]):
            meta = {"group": f"replayed {index}", "uris": [], **example.meta, "kind": "replayed"}
            replayed.append(replace(example, meta=meta))
        if replayed:
            sources += card.get("sources", [])
    return add_examples(
        rag, dataset, [*replayed, *logged], recipe, left_out, sources=sources, held_out=held_out.sources
    )


def _train(rag: Rag, model: str, folder: Path, settings: RefreshSettings, progress: ProgressCallback) -> dict[str, Any]:
    """Train the adapter, unless it is there already; returns the figures of the training run."""
    if not (folder / RECORD).is_file():
        base, examples = Base(model), folder / "examples"
        start = _start_adapter(rag.sampling.adapter, model, folder)
        method = replace(settings.training.method, method=_method(start, settings))
        training_settings = replace(settings.training, start=start, method=method)
        valid = read_examples(examples / VALID)
        training = Training(base, read_examples(examples / TRAIN), folder, training_settings, valid=valid)
        write_adapter(training, training.run(progress), card=read_card(examples))
    return dict(read_record(folder).numbers)


def _export(folder: Path, model: str) -> Path:
    """The adapter as a GGUF file for llama.cpp; a refresh that was killed after training may lack it."""
    return folder / GGUF if (folder / GGUF).is_file() else export_adapter(folder, "gguf", base=model)


def _method(adapter: str | None, settings: RefreshSettings) -> Method:
    """The method of the adapter that is served, else that of the settings. A GGUF file is a LoRA."""
    if adapter is None:
        return settings.training.method.method
    if not Path(adapter).is_dir():
        return "lora"
    name = read_record(adapter).method
    return next(method for method in METHODS if method == name)


def _start_adapter(adapter: str | None, model: str, folder: Path) -> str | None:
    """The served adapter as a PEFT folder, to start from."""
    if adapter is None:
        return None
    path = Path(adapter)
    if path.is_dir():
        return str(path)
    peft_folder = path.parent
    if (peft_folder / RECORD).is_file() and any(peft_folder.glob("adapter_model.safetensors")):
        trained_on = read_record(peft_folder).base["sha256"]
        # If it was trained on a model folder and exported for this GGUF file, only the GGUF adapter is for this file.
        if trained_on == weights_sha256(find_model(model, "reader")):
            return str(peft_folder)
    start = folder / "start"
    if not (start / RECORD).is_file():
        export_adapter(path, "peft", out=start, base=model)
    return str(start)


def _compare(
    rag: Rag, adapter: str, questions: Sequence[Question], out: Path, progress: ProgressCallback
) -> Difference:
    """Token F1 with an adapter against that without, over all questions; a correct abstention counts 1."""
    after = Rag(rag.collection, adapter=adapter)
    after.calibration = _calibration_for(rag, adapter)
    for name, pipeline in (("before", rag), ("after", after)):
        evaluate_answers(
            pipeline,
            questions,
            contexts=["retrieved"],
            out=out.with_suffix(f".{name}"),
            progress=with_stage(progress, f"answer {out.name}, {name}"),
        )
    return compare_runs(out.with_suffix(".before"), out.with_suffix(".after")).differences[0]


def _calibration_for(rag: Rag, adapter: str) -> Calibration | None:
    """The current calibration, assigned to another adapter; that for all readers is for all adapters, too."""
    calibration = rag.calibration
    return replace(calibration, adapter=adapter_hash(adapter)) if calibration and calibration.reader else calibration


def _adopt(place: Path, folder: Path, report: RefreshReport, calibration: Calibration | None) -> None:
    """Write the adapter and its calibration to the settings file, and the previous ones to the history."""
    settings = load_settings(place)
    entry: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "adapter": str(folder.absolute()),
        "before": settings.adapter,
        "why": report.why,
    }
    keys = {"": {"adapter": entry["adapter"]}}
    if calibration and calibration.reader:
        before = settings.ask.confidence
        entry["confidence"] = before and calibration_keys(before)["ask"]["confidence"]
        keys |= calibration_keys(calibration)
    # The history comes first: `roll_back` reports an entry too many, but one that is missing would be lost. A refresh
    # that was killed between the two has an entry already.
    history = [other for other in _read_history(place) if other["adapter"] != entry["adapter"]]
    _write_history(place, [*history, entry])
    write_keys(place, keys)


def _read_history(place: Path) -> list[dict[str, Any]]:
    path = settings_path(place).with_name(HISTORY)
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def _write_history(place: Path, history: Sequence[Mapping[str, Any]]) -> None:
    content = json.dumps(history, indent=1, ensure_ascii=False).encode() + b"\n"
    write_durably(settings_path(place).with_name(HISTORY), content)


def _is_test(question: str) -> bool:
    """Whether a question is tested and never trained on."""
    return int(_hash(normalize(question))[:8], 16) / 2**32 < _TEST_SHARE


def _hash(text: str) -> str:
    return blake2b(text.encode()).hexdigest()
