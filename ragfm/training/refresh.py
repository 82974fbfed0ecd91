"""A reader that goes on learning: what came since is learned, and served only where it is shown to be better.

sync ─→ log and QUESTIONS ─parted by hash→ learn ─examples→ train, from the adapter of now ─→ a new adapter
                                          └ test ─eval answers, before and after→ better, and the old set no worse?
yes: `adapter` in ragfm.toml, and a line in ragfm-adapters.json, by which `step_back` goes back

What users get is compared: both adapters by the calibration of now, which corrects and withholds for both, or by none.
It is served with the new adapter, too; without it, a better adapter could give worse answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ragfm.citations.confidence import adapter_hash
from ragfm.core.calibration import Calibration
from ragfm.core.config import SETTINGS_FILE, load_settings
from ragfm.core.durable_files import write_durably
from ragfm.core.errors import DataError, LogError, UnsupportedError
from ragfm.core.output_folder import make_output
from ragfm.core.registry import plugin_and_model
from ragfm.evaluation.answer_evaluation import evaluate_answers
from ragfm.evaluation.answer_matching import normalise
from ragfm.evaluation.log_questions import questions_from_log
from ragfm.evaluation.question_sets import fingerprint, load_jsonl
from ragfm.evaluation.retrieval_evaluation import collection_content, collection_facts
from ragfm.evaluation.run_comparison import Difference, compare_runs
from ragfm.evaluation.settings_file import calibration_keys, import_tomlkit, write_keys
from ragfm.generation.answer_log import AnswerLog
from ragfm.generation.prompt import prompt_fingerprint
from ragfm.models.adapters import GGUF, METHODS, RECORD, Method, read_record
from ragfm.models.model_lookup import find_model, weights_sha256
from ragfm.rag import Rag
from ragfm.training.adapter_export import export_adapter
from ragfm.training.adapter_folder import finish
from ragfm.training.base_model import Base
from ragfm.training.dataset import Dataset, Recipe, with_examples, write_dataset
from ragfm.training.examples import TRAIN, VALID, Example, digest, read_card, read_examples
from ragfm.training.held_out import HeldOut, held_out
from ragfm.training.log_examples import logged_examples, outdated, rated_entries
from ragfm.training.raft import build_examples
from ragfm.training.trainer import Training, TrainSettings

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.evaluation.question_sets import Question
    from ragfm.generation.answer_log import LogEntry

HISTORY = "ragfm-adapters.json"
DECISION = "refresh.json"
_TEST = "test.jsonl"
_INPUTS = "inputs.json"
_TESTED = 0.3
"""The share of new questions that nothing is ever learned from. A question is in the same part at every refresh."""

_SERVES: Mapping[str, tuple[Method, ...]] = {"llama-cpp": ("lora", "qlora"),
                                             "transformers": ("lora", "qlora", "dora", "ia3")}  # fmt: skip

Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class RefreshSettings:
    """How it is refreshed. `old` are questions whose answers must not get worse, about the collection.

    `replay` is a folder of examples that were learned before, which keep what is known; of them as many are taken as
    there are new ones, times `replayed`. `licence` is that of questions and log, for the card.
    """

    training: TrainSettings = TrainSettings(epochs=2, rate=1e-4, batch=8)  # noqa: RUF009  frozen
    questions: Path | None = None
    old: Path | None = None
    replay: Path | None = None
    replayed: float = 1.0
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What became of it. `new` and `old` are after against before, by token F1 over the questions of each set."""

    adopted: bool
    why: str
    folder: str
    examples: Mapping[str, int]
    new: Difference | None = None
    old: Difference | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)


def refresh(
    collection: Collection, folder: Path, settings: RefreshSettings = RefreshSettings(), *,
    progress: Progress = lambda *_: None,
) -> Refreshed:  # fmt: skip
    """Learn what is new in `folder`, and adopt it where it is better; interrupted, it goes on there.

    The collection is to be synced before. Raises DataError where there is nothing to learn or to test with,
    UnsupportedError for a reader that is not trained here, and MissingExtraError where ragfm.toml can't be written.
    """
    import_tomlkit()
    rag = Rag(collection)
    plugin, model = plugin_and_model("readers", rag.reader_name)
    if plugin not in _SERVES:
        raise UnsupportedError(f"The reader {rag.reader_name} runs elsewhere.", "Refresh a model of this machine.")
    if (method := _method(rag.sampling.adapter, settings)) not in _SERVES[plugin]:
        raise UnsupportedError(f"What {method} learns is not served by {plugin}.",
                               f"It serves {', '.join(_SERVES[plugin])}.")  # fmt: skip
    make_output(folder, mode=0o700)  # what people ask is nobody's business
    _prepare(rag, folder, settings)
    test = load_jsonl(folder / _TEST, answers=True).questions
    numbers = _trained(rag, model, folder, settings, progress)
    new = str(_exported(folder, model) if plugin == "llama-cpp" else folder)
    found = {"new": _compared(rag, new, test, folder / "new", progress)}
    if settings.old:
        old = load_jsonl(settings.old, answers=True).questions
        found["old"] = _compared(rag, new, old, folder / "old", progress)
    adopted, why = verdict(found["new"], found.get("old"))
    card = read_card(folder / "examples")
    done = Refreshed(adopted, why, str(folder), card["examples"], found["new"], found.get("old"), numbers)
    if adopted:
        _adopt(collection.path.parent, folder, done, _carried(rag, new))
    write_durably(folder / DECISION, json.dumps(asdict(done), indent=1, ensure_ascii=False).encode() + b"\n")
    return done


def verdict(new: Difference, old: Difference | None) -> tuple[bool, str]:
    """Whether an adapter is adopted, and why: the new questions have to be won, and the old ones not lost."""
    change = f"F1 {new.a:.3f} → {new.b:.3f}, {new.difference:+.3f} [{new.low:+.3f}, {new.high:+.3f}], p = {new.p:.3f}"
    count = new.wins + new.losses + new.ties
    if new.noise or new.difference <= 0:
        what = "within noise" if new.noise else "worse"
        return False, f"On {count} new questions it is {what}: {change}."
    if old and old.difference < 0 and not old.noise:
        return False, (
            f"It is better on {count} new questions ({change}), but falls on the old ones: "
            f"F1 {old.a:.3f} → {old.b:.3f}, p = {old.p:.3f}."
        )
    kept = "" if old is None else f" On the old ones it does not fall: F1 {old.a:.3f} → {old.b:.3f}."
    return True, f"On {count} new questions it is better, beyond noise: {change}.{kept}"


def step_back(folder: Path) -> tuple[str, str | None]:
    """Serve what was served before the last refresh; gives the adapter that goes and the one that comes.

    `folder` is that of ragfm.toml. Raises DataError where nothing was adopted, or another one is set since.
    """
    history = _history(folder)
    if not history:
        raise DataError(f"No refresh was adopted in {folder}.", "`ragfm adapt refresh` adopts one.")
    last = history[-1]
    if load_settings(folder).adapter != last["adapter"]:
        raise DataError(
            f"{folder / SETTINGS_FILE} names another adapter than the last refresh did, which is {last['adapter']}.",
            "Set `adapter` there yourself.",
        )
    calibration = {"ask": {"confidence": last["confidence"]}} if "confidence" in last else {}
    write_keys(folder, {"": {"adapter": last["before"]}, **calibration})
    _keep(folder, history[:-1])
    return last["adapter"], last["before"]


def next_folder(place: Path, inputs: Mapping[str, Any], adapter: str | None = None) -> tuple[Path, list[str]]:
    """The folder of a refresh of these inputs that was interrupted, or that of a new one; and what differs in the last.

    One whose folder is the `adapter` that is served has ended, though it may have been killed before it said so.
    """
    numbers = [int(path.name) for path in place.glob("[0-9]*") if path.name.isdigit()] if place.is_dir() else []
    last = max(numbers, default=0)
    folder, following = place / f"{last:03}", place / f"{last + 1:03}"
    if not last or (folder / DECISION).exists() or adapter == str(folder.absolute()):
        return following, []
    if not read_card(folder / "examples"):  # nothing was done there
        return folder, []
    there = json.loads((folder / _INPUTS).read_bytes()) if (folder / _INPUTS).is_file() else {}
    different = [key for key in inputs if inputs[key] != there.get(key)]
    return (following if different else folder), different


def inputs_of(collection: Collection, settings: RefreshSettings) -> dict[str, Any]:
    """What a refresh depends on, in JSON: one that was interrupted goes on where all of it is the same."""
    questions, old = ([] if path is None else load_jsonl(path, answers=True).questions
                      for path in (settings.questions, settings.old))  # fmt: skip
    facts = {
        **collection_facts(collection, collection_content(collection)[1]),
        "settings": collection.settings.model_dump(mode="json", exclude={"sources", "files"}),
        "adapter": adapter_hash(Rag(collection).sampling.adapter),
        "log": _hash(json.dumps([*questions_from_log(_judged(collection))])),
        "questions": fingerprint(questions, answers=True),
        "licence": settings.licence,
        "old": fingerprint(old, answers=True),
        "replay": settings.replay and digest(read_examples(settings.replay / TRAIN)),
        "training": [asdict(settings.training), settings.replayed],
    }
    return dict(json.loads(json.dumps(facts)))


# --- Inside ------------------------------------------------------------------------------------------------------


def _prepare(rag: Rag, folder: Path, settings: RefreshSettings) -> None:
    """The questions to test with, and the examples: once, so that an interrupted refresh goes on with the same."""
    if read_card(folder / "examples"):
        return
    inputs, asked = inputs_of(rag.collection, settings), _asked(settings)
    given = {normalise(question.text) for question in asked}  # now, by who refreshes: before what the log says
    entries = [entry for entry in _judged(rag.collection) if normalise(entry.query) not in given]
    lines = list(questions_from_log(entry for entry in entries if _tested(entry.query) and not outdated(rag, entry)))
    lines += [line for question in asked if _tested(question.text) for line in _as_lines(question)]
    if not lines:
        raise DataError(
            f"There are {len(entries)} judged answers in the log and {len(asked)} questions, too few to test with.",
            "Judge more answers (`ragfm log thumbs`), or give questions with answers.",
        )
    (folder / _TEST).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    write_durably(folder / _INPUTS, json.dumps(inputs).encode())  # before the card, by which all is there
    write_dataset(_dataset(rag, entries, asked, folder, settings), folder / "examples")


def _asked(settings: RefreshSettings) -> list[Question]:
    """The questions that are given, each of them once."""
    asked = load_jsonl(settings.questions, answers=True).questions if settings.questions else ()
    return list({normalise(question.text): question for question in asked}.values())


def _judged(collection: Collection) -> list[LogEntry]:
    try:
        return rated_entries(AnswerLog.for_collection(collection.path).entries())
    except LogError:
        return []


def _dataset(
    rag: Rag, entries: Sequence[Any], asked: Sequence[Question], folder: Path, settings: RefreshSettings
) -> Dataset:  # fmt: skip
    """Examples of what may be learned, and old ones beside them."""
    recipe = Recipe(seed=settings.training.seed)
    held = held_out([folder / _TEST, *([settings.old] if settings.old else [])])
    held = replace(held, uris=frozenset())  # questions are kept apart; documents are what all of them are about
    to_learn = [question for question in asked if not _tested(question.text)]
    name = settings.questions and settings.questions.name
    about = {"sources": [{"name": name, "licence": settings.licence}], "reader": rag.reader_name}
    dataset = build_examples(rag, to_learn, recipe, held=held, about=about, alone=False) if to_learn else None
    # What is outdated is not tested, but left out and counted.
    to_learn_from = [entry for entry in entries if not _tested(entry.query) or outdated(rag, entry)]
    logged, left_out = logged_examples(rag, to_learn_from, held=held)
    made = [*logged, *([*dataset.train, *dataset.valid] if dataset else [])]
    apart = held.asking(str(example.meta["question"]) for example in made)  # an old answer would replace a new one
    old = _replayed(rag, settings, round(settings.replayed * len(made)), apart)
    sources: list[Mapping[str, Any]] = []
    if logged:
        sources.append({"name": "the answer log", "licence": settings.licence, "left_out": dict(left_out)})
    if settings.replay and old:
        sources += read_card(settings.replay).get("sources", [])
    return with_examples(rag, dataset, [*old, *logged], recipe, left_out, sources=sources, held_out=held.sources)


def _replayed(rag: Rag, settings: RefreshSettings, count: int, apart: HeldOut) -> list[Example]:
    """Of the old examples so many, but none that asks, or was changed from, what is tested or `apart`."""
    if settings.replay is None:
        return []
    prompt = prompt_fingerprint(documents_only=rag.collection.settings.ask.mode != "open", strategy=rag.strategy)
    if read_card(settings.replay).get("prompt", prompt) != prompt:
        raise DataError(f"The examples in {settings.replay} were made for another prompt.", "Make them again.")
    examples = []
    for example in read_examples(settings.replay / TRAIN):
        question = str(example.meta.get("question", ""))
        original = str(example.meta.get("changed_from", question))
        if not (_tested(original) or apart.asks(original) or apart.asks(question)):
            examples.append(example)
    chosen = sorted(examples, key=lambda example: _hash(f"{settings.training.seed} {example.messages}"))[:count]
    return [replace(example, meta={"group": f"replayed {at}", "uris": [], **example.meta, "kind": "replayed"})
            for at, example in enumerate(chosen)]  # fmt: skip


def _trained(rag: Rag, model: str, folder: Path, settings: RefreshSettings, progress: Progress) -> dict[str, Any]:
    if not (folder / RECORD).is_file():
        base = Base(model)
        start = _start(rag.sampling.adapter, model, folder)
        method = replace(settings.training.method, method=_method(start, settings))
        training = Training(
            base, read_examples(folder / "examples" / TRAIN), folder,
            replace(settings.training, start=start, method=method),
            valid=read_examples(folder / "examples" / VALID),
        )  # fmt: skip
        numbers = training.run(lambda at: progress("learning", at.step, at.steps))
        finish(training, numbers, card=read_card(folder / "examples"))
    return dict(read_record(folder).numbers)


def _exported(folder: Path, model: str) -> Path:
    """What llama.cpp serves; it may be missing though training has ended, where that was killed."""
    return folder / GGUF if (folder / GGUF).is_file() else export_adapter(folder, "gguf", base=model)


def _method(adapter: str | None, settings: RefreshSettings) -> Method:
    """How it learns: as the adapter that is served does, of which a GGUF file is a LoRA."""
    if adapter is None:
        return settings.training.method.method
    return next(one for one in METHODS if one == read_record(adapter).method) if Path(adapter).is_dir() else "lora"


def _start(adapter: str | None, model: str, folder: Path) -> str | None:
    """The adapter that is served now in PEFT's form, to go on from."""
    if adapter is None:
        return None
    path = Path(adapter)
    if path.is_dir():
        return str(path)
    if (path.parent / RECORD).is_file() and any(path.parent.glob("adapter_model.safetensors")):
        trained = read_record(path.parent).base["sha256"]
        if trained == weights_sha256(find_model(model, "reader")):  # else it was exported for a GGUF file of its base
            return str(path.parent)
    start = folder / "start"
    if not (start / RECORD).is_file():
        export_adapter(path, "peft", out=start, base=model)
    return str(start)


def _compared(rag: Rag, adapter: str, questions: Sequence[Question], out: Path, progress: Progress) -> Difference:
    """By F1 over all questions, in which a right abstention counts 1."""
    after = Rag(rag.collection, adapter=adapter)
    after.calibration = _carried(rag, adapter)
    for one, name in ((rag, "before"), (after, "after")):
        evaluate_answers(one, questions, contexts=["retrieved"], out=out.with_suffix(f".{name}"),
                         progress=lambda done, of, name=name: progress(f"answering, {out.name}, {name}", done, of))  # type: ignore[misc]  # fmt: skip
    return compare_runs(out.with_suffix(".before"), out.with_suffix(".after")).differences[0]


def _carried(rag: Rag, adapter: str) -> Calibration | None:
    """The calibration of now, for another adapter."""
    return rag.calibration and replace(rag.calibration, adapter=adapter_hash(adapter))


def _adopt(place: Path, folder: Path, done: Refreshed, calibration: Calibration | None) -> None:
    """The history first: a line too many there is said by `step_back`, one too few would be lost."""
    now = load_settings(place)
    entry: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"),
                             "adapter": str(folder.absolute()), "before": now.adapter, "why": done.why}  # fmt: skip
    keys = {"": {"adapter": entry["adapter"]}}
    if calibration:
        before = now.ask.confidence
        entry["confidence"] = before and calibration_keys(before)["ask"]["confidence"]
        keys |= calibration_keys(calibration)
    _keep(place, [*(one for one in _history(place) if one["adapter"] != entry["adapter"]), entry])  # if it was killed
    write_keys(place, keys)


def _history(place: Path) -> list[dict[str, Any]]:
    path = place / HISTORY
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def _keep(place: Path, history: Sequence[Mapping[str, Any]]) -> None:
    write_durably(place / HISTORY, json.dumps(history, indent=1, ensure_ascii=False).encode() + b"\n")


def _tested(question: str) -> bool:
    return int(_hash(normalise(question))[:8], 16) / 2**32 < _TESTED


def _hash(text: str) -> str:
    return blake2b(text.encode()).hexdigest()


def _as_lines(question: Question) -> Iterable[dict[str, Any]]:
    line: dict[str, Any] = {"id": f"question-{question.id}", "question": question.text}
    line |= {"unanswerable": True} if question.unanswerable else {"answers": list(question.answers)}
    golds = [{"uri": gold.uri, **({"start": gold.start, "end": gold.end} if gold.start is not None else {})}
             for gold in question.gold]  # fmt: skip
    return [{**line, **gold} for gold in golds or [{}]]
