"""Structured answers: finite schemas, objects under a grammar, and each field held against the passages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import BaseModel, Field
from support.judges import ScriptedJudge
from support.tiny_gguf import write_tiny

from ragfm import Collection, Rag, Settings, load_reader
from ragfm.answering.judge import Evidence, Judgement
from ragfm.cli.options import read_schema
from ragfm.core.config import AskSection
from ragfm.core.errors import ConfigError, ExtractionError, UnsupportedError
from ragfm.core.types import Hit, Message, Sampling
from ragfm.evaluation.log_questions import rated_entries
from ragfm.generation.json_schema import DEFAULT_MAX_ITEMS, DEFAULT_MAX_LENGTH, OutputSchema
from ragfm.generation.prompt import Prompt
from ragfm.generation.readers.llama_model import LlamaModel
from ragfm.generation.readers.llama_sampler import GrammarSampler
from ragfm.generation.structured_output import fill_schema, output_schema
from ragfm.testing import HashingEmbedder, ScriptedReader

SURE = ScriptedJudge(supports=lambda _: 0.9)  # what is exact can still refute


class Leave(BaseModel):
    days: int = Field(description="days of leave")
    parents: str | None = None


def an_object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


@pytest.fixture(scope="module")
def handbook(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    folder = tmp_path_factory.mktemp("extract")
    (folder / "docs").mkdir()
    (folder / "docs" / "leave.md").write_text(
        "# Leave\n\nYou get 28 days of leave. A day is paid with 1,250.50 crowns. Leave is asked for by Olav Brekke.\n"
    )
    (folder / "docs" / "pets.md").write_text("# Pets\n\nDogs are welcome on Fridays. Cats are not welcome.\n")
    settings = Settings(ask=AskSection(log=True))
    collection = Collection.open(folder / ".ragfm", settings=settings, embedder=HashingEmbedder())
    collection.sync(folder / "docs")
    return collection


def said(handbook: Collection, value: Any, schema: Any, question: str = "How many days of leave do I get?") -> Any:
    text = value if isinstance(value, str) else json.dumps(value)
    return Rag(handbook, reader=ScriptedReader([text]), k=2).extract(question, schema)


# --- Fields ------------------------------------------------------------------------------------------------------


def test_each_field_has_its_citation(handbook: Collection) -> None:
    found = said(handbook, {"days": 28, "parents": None}, Leave)
    assert found.value == Leave(days=28, parents=None)
    assert found.data == {"days": 28, "parents": None}
    days, parents = found.fields
    assert (days.path, days.value, days.supported) == ("/days", 28, True)
    (citation,) = days.citations
    assert handbook.document(citation.uri).text[citation.start : citation.end] == "You get 28 days of leave."
    assert citation.supports
    assert (parents.path, parents.supported, parents.citations, parents.removed) == ("/parents", False, (), None)
    assert next(hit for hit in found.hits if hit.n == citation.n).uri == "docs/leave.md"
    assert found.usage.prompt_tokens > 0


def test_the_judge_reads_all_values_at_once_and_decides(handbook: Collection) -> None:
    batches = list[Sequence[Evidence]]()

    class Counting(ScriptedJudge):
        def read(self, evidence: Sequence[Evidence], *, fast: bool = False) -> list[Judgement]:
            batches.append(evidence)
            return super().read(evidence, fast=fast)

    rag = Rag(handbook, reader=ScriptedReader(['{"days": 28, "parents": "Olav Brekke"}']), k=2)
    rag.judge = Counting(supports=lambda one: 0.9 if "28" in one.statement else 0.4)
    found = rag.extract("How many days of leave do I get?", Leave)
    assert [(field.value, field.supported) for field in found.fields] == [(28, True), (None, False)]
    (batch,) = batches
    assert {one.statement for one in batch} == {"28 days", "Olav Brekke"}


def test_each_sentence_of_a_value_must_be_supported(handbook: Collection) -> None:
    schema = an_object(pets={"type": "string"})
    for second, supported in (("Cats are not welcome.", True), ("The canteen is closed.", False)):
        value = f"Dogs are welcome on Fridays. {second}"
        (field,) = said(handbook, {"pets": value}, schema, "Which animals may come?").fields
        assert (field.supported, len(field.citations)) == (supported, 2 if supported else 0)


def test_a_number_of_another_unit_is_not_supported(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    text = "You get 31 days of leave a year. Ask for leave three weeks ahead; you get a reply within five days."
    (tmp_path / "docs" / "leave.md").write_text(text)
    collection = Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder=HashingEmbedder())
    collection.sync(tmp_path / "docs")
    schema = an_object(days={"type": ["integer", "null"]})
    question = "How many days of leave do I get?"
    (right,) = said(collection, {"days": 31}, schema, question).fields
    assert (right.value, right.supported, right.citations[0].quote) == (31, True, text.partition(" Ask")[0])
    (wrong,) = said(collection, {"days": 3}, schema, question).fields
    assert (wrong.value, wrong.supported, wrong.removed) == (None, False, 3)


@pytest.mark.parametrize(
    ("question", "name", "text"),
    [
        ("How old must I be for a licence?", "min_age", "You must be 18 years old for a licence."),
        ("What is the pay in the second year?", "pay", "The pay in the second year is 18 euros."),
        ("What is the pay per hour?", "pay", "The pay is 18 euros per hour."),
        ("What is the pay?", "payPerHour", "The pay is 18 euros per hour."),
        ("How many working hours has a week?", "amount", "A week has 18 working hours."),
        ("How long is the break in minutes?", "length", "The break is 18 min."),
    ],
)
def test_a_word_that_may_be_a_unit_is_not_always_that_of_the_number(question: str, name: str, text: str) -> None:
    prompt = Prompt((Message("user", question),), (Hit("a.md", text, 0, len(text), 1, 0.5, {}, n=1),), ())
    schema = output_schema(an_object(**{name: {"type": ["integer", "null"]}}))
    reader = ScriptedReader([json.dumps({name: 18})])
    data, _, _ = fill_schema(schema, question, reader, prompt, Sampling(), "en", ScriptedJudge())
    assert data == {name: 18}


def test_properties_are_not_names_of_the_question(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "leave.md").write_text("Each member gets 28 days off.")
    collection = Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder=HashingEmbedder())
    collection.sync(tmp_path / "docs")
    schema = an_object(holidayEntitlement={"type": ["integer", "null"], "description": "ISO 8601 days per Member"})
    (field,) = said(collection, {"holidayEntitlement": 28}, schema, "How many days off does each member get?").fields
    assert (field.value, field.supported) == (28, True)


def test_unsupported_values_are_null_if_allowed_else_marked(handbook: Collection) -> None:
    found = said(handbook, {"days": 27, "parents": "16 weeks"}, Leave)
    assert found.value == Leave(days=27, parents=None)
    days, parents = found.fields
    assert (days.supported, days.citations, days.removed) == (False, (), None)
    assert (parents.value, parents.removed) == (None, "16 weeks")


@pytest.mark.parametrize(
    ("kind", "value", "question", "supported"),
    [
        ({"type": "number"}, 28, "How much leave do I get?", True),
        ({"type": "number"}, 27, "How much leave do I get?", False),
        ({"type": "string"}, "Olav Brekke", "Who asks for leave?", True),
        ({"type": "string"}, "Edvard Munch", "Who asks for leave?", False),
        ({"type": "boolean", "description": "Dogs are welcome"}, True, "Are pets welcome?", True),
        ({"type": "boolean", "description": "cats are welcome"}, False, "Are pets allowed?", True),
        ({"enum": ["Fridays", "Mondays"]}, "Fridays", "When are dogs welcome?", True),
        ({"enum": ["Fridays", "Mondays"]}, "Mondays", "When are dogs welcome?", False),
    ],
)
def test_values_of_all_types_are_checked_against_the_passages(
    handbook: Collection, kind: dict[str, Any], value: Any, question: str, supported: bool
) -> None:
    (field,) = said(handbook, {"dogs": value}, an_object(dogs=kind), question).fields
    assert field.supported is supported
    assert bool(field.citations) is supported


@pytest.mark.parametrize(
    ("value", "text", "supported"),
    [
        (-5, "The value is 5 degrees.", False),
        (-5, "The value is \u22125 degrees.", True),
        (52.524, "The value is 52.52 degrees.", False),
        (4.996, "The value is 5.00 degrees.", False),
        (52.520008, "The value is 52.520008 degrees.", True),
        (1e-07, "The value is 0.0000001 degrees.", True),
        (2500000.0, "The value is 2,500,000 degrees.", True),
        (4.5, "The value is 4.50 degrees.", True),
        (4.5, "The value is 4,5 degrees.", True),
    ],
)
def test_a_number_is_not_a_rounded_one(value: float, text: str, supported: bool) -> None:
    form = OutputSchema.of(an_object(it={"type": "number"}))
    prompt = Prompt((), (Hit("a.md", text, 0, len(text), 1, 0.5, {}, n=1),), ())
    reader = ScriptedReader([json.dumps({"it": value})])
    (field,) = fill_schema(form, "What is the value in degrees?", reader, prompt, Sampling(), "en", SURE)[1]
    assert field.supported is supported


@pytest.mark.parametrize(
    ("value", "text", "supported"),
    [
        ("2024-05-01", "The invoice is of 1 May 2024.", True),
        ("2024-05-01", "The invoice is of May 1st, 2024.", True),
        ("2024-05-01", "The invoice is of 01.05.2024.", True),
        ("2024-05-01", "The invoice is of 1.5.2024.", True),
        ("2024-05-01", "The invoice is of 5/1/2024.", True),
        ("2024-05-01", "The invoice is of 2024-05-01.", True),
        ("2024-05-01", "The invoice is of 05/01/2024.", True),
        ("2024-05-01", "The invoice is of 2.5.2024.", False),
        ("2024-05-01", "The invoice is of 2 May 2024.", False),
        ("2024-05-01", "The invoice is of 1 June 2024.", False),
        ("2024-09-12", "The invoice is of 12 Sep 2024.", True),
        ("09:00:00", "The invoice is of 9:00.", True),
        ("09:00", "The invoice is of 9:00.", True),
        ("09:00", "The invoice is of 09:30.", False),
    ],
)
def test_dates_and_times_are_found_as_documents_write_them(value: str, text: str, supported: bool) -> None:
    form = OutputSchema.of(an_object(of={"type": "string"}))
    prompt = Prompt((), (Hit("a.md", text, 0, len(text), 1, 0.5, {}, n=1),), ())
    reader = ScriptedReader([json.dumps({"of": value})])
    (field,) = fill_schema(form, "When is the invoice of?", reader, prompt, Sampling(), "en", SURE)[1]
    assert field.supported is supported


def test_fields_of_lists_and_objects_within(handbook: Collection) -> None:
    schema = an_object(pets=an_object(days={"type": "array", "items": {"type": ["string", "null"]}}))
    found = said(handbook, {"pets": {"days": ["Fridays", "Mondays"]}}, schema, "When are dogs welcome?")
    assert found.value == {"pets": {"days": ["Fridays", None]}}
    assert [(field.path, field.removed) for field in found.fields] == [
        ("/pets/days/0", None),
        ("/pets/days/1", "Mondays"),
    ]


def test_the_prompt_describes_the_schema_and_the_log_stores_the_object(handbook: Collection) -> None:
    rag = Rag(handbook, reader=(reader := ScriptedReader(['{"days": 28, "parents": null}'])), k=1)
    found = rag.extract("How many days?", Leave)
    prompt = reader.prompts[0][-1].content
    assert '{"days": whole number (days of leave), "parents": text or null}' in prompt
    assert "one short sentence" not in prompt
    assert rag.log is not None
    entry = rag.log.entry(found.log_id or 0)
    assert json.loads(entry.answer) == found.data
    assert entry.citations[0]["quote"] == "You get 28 days of leave."


def test_the_log_stores_failures_and_omits_unused_adapters(handbook: Collection) -> None:
    rag = Rag(handbook, reader=ScriptedReader(['{"days": 28, "parents": null}', '{"days": 28, "par'])).with_options(
        sampling=Sampling(max_tokens=64, adapter="prose.gguf")
    )
    assert rag.log is not None
    found = rag.extract("How many days?", Leave)
    assert rag.log.entry(found.log_id or 0).adapter is None
    with pytest.raises(ExtractionError):
        rag.extract("How many days, again?", Leave)
    last = rag.log.entries()[-1]
    assert (last.question, last.finished, last.abstained) == ("How many days, again?", False, False)
    assert last.passages
    assert "whole number" in last.prompt[-1]["content"]


def test_an_object_that_does_not_meet_the_schema_is_logged_without_it(handbook: Collection) -> None:
    rag = Rag(handbook, reader=ScriptedReader(['{"days": 28}']))
    assert rag.log is not None
    with pytest.raises(ExtractionError, match="less than the minimum"):
        rag.extract("How many days of leave do I get?", an_object(days={"type": "integer", "minimum": 30}))
    last = rag.log.entries()[-1]
    assert (last.answer, last.citations, last.finished, last.abstained) == ("", [], False, False)
    assert last.usage["completion_tokens"] > 0


def test_a_structured_answer_is_not_learned_as_prose(handbook: Collection) -> None:
    rag = Rag(handbook, reader=ScriptedReader(['{"days": 28, "parents": null}']))
    assert rag.log is not None
    number = rag.extract("How many days?", Leave).log_id or 0
    rag.log.rate(number, "up")
    assert not rated_entries([rag.log.entry(number)])
    rag.log.rate(number, "down", "28 days.")
    assert rated_entries([rag.log.entry(number)])


def test_no_passage_gives_no_object(handbook: Collection) -> None:
    reader = ScriptedReader(["never"])
    found = Rag(handbook, reader=reader).extract("How many days?", Leave, filter="uri = none")
    assert (found.value, found.data, found.fields, reader.prompts) == (None, None, (), [])


# --- What goes wrong ---------------------------------------------------------------------------------------------


def test_an_object_that_is_cut_off_names_the_limit(handbook: Collection) -> None:
    schema = an_object(text={"type": "string", "maxLength": 100_000})
    collection = Collection.open(
        handbook.path, settings=Settings(ask=AskSection(answer_tokens=20)), embedder=HashingEmbedder()
    )
    rag = Rag(collection, reader=ScriptedReader(['{"text": "' + "word " * 600], context_tokens=1000))
    with pytest.raises(ExtractionError, match=r"limit of 500 tokens.*maxLength"):
        rag.extract("What?", schema)


@pytest.mark.parametrize(
    "output",
    [
        '```json\n{"days": 28}\n```',
        '```\n{"days": 28}```\n',
        'Here is the object:\n\n```json\n{"days": 28}\n```\nIt has one field.',
        '<think>\n{28}?\n</think>\n\n{"days": 28}',
        '[THINK]{28}?[/THINK]{"days": 28}',
        'Perhaps {28}?\n</thinking>\n{"days": 28}',
    ],
)
def test_reasoning_and_text_around_the_object_are_left_out(handbook: Collection, output: str) -> None:
    assert said(handbook, output, Leave).data == {"days": 28}


def test_output_that_is_not_json_or_violates_the_schema_is_an_error(handbook: Collection) -> None:
    with pytest.raises(ExtractionError, match="not JSON"):
        said(handbook, "You get 28.", Leave)
    pair = {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "integer"}], "maxItems": 2}
    with pytest.raises(ExtractionError, match="too long"):  # it is not cut
        said(handbook, {"days": [28, 16, 2]}, an_object(days=pair))
    for number in ("NaN", "1e999", "-Infinity"):
        with pytest.raises(ExtractionError, match="not a finite number"):
            said(handbook, f'{{"days": {number}}}', an_object(days={"type": "number"}))
    with pytest.raises(ExtractionError, match=r"28 is less than the minimum of 30 at \$\.days"):
        said(handbook, {"days": 28}, an_object(days={"type": "integer", "minimum": 30}))

    class Strict(BaseModel):
        days: int = Field(ge=30)

    with pytest.raises(ExtractionError, match="greater than or equal to 30 at /days"):
        said(handbook, {"days": 28}, Strict)


@pytest.mark.parametrize(
    ("schema", "error", "message"),
    [
        ({"type": "text"}, ConfigError, "not a JSON schema"),
        ({"type": "string"}, ConfigError, "does not describe an object"),
        ({"type": "object"}, UnsupportedError, "no properties for the object"),
        (an_object(x={}), UnsupportedError, "no type for /x"),
        (an_object(x={"type": "array"}), UnsupportedError, "no type for /x/0"),
        (an_object(x={"$ref": "#"}), UnsupportedError, "refers to itself at /x"),
        (an_object(x={"$ref": "https://example.org/a.json"}), UnsupportedError, "not in it"),
        (an_object(x={"type": "string", "pattern": "a"}), UnsupportedError, "grammar"),
    ],
)
def test_schemas_that_cannot_be_answered(schema: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _ = OutputSchema.of(schema).grammar


# --- Schemas -----------------------------------------------------------------------------------------------------


class Contact(BaseModel):
    name: str = Field(max_length=30)
    kind: Literal["staff", "guest"]
    phone: str | None = None


class Everything(BaseModel):
    contacts: list[Contact] = Field(max_length=2)
    pair: tuple[int, bool]
    day: date
    rate: float
    note: str = "none"


def test_a_schema_is_made_finite() -> None:
    form = output_schema(Everything)
    contact = form.bounded["properties"]["contacts"]
    assert contact["maxItems"] == 2
    assert contact["items"]["properties"]["name"]["maxLength"] == 30
    assert contact["items"]["required"] == ["name", "kind", "phone"]
    assert form.bounded["required"] == ["contacts", "pair", "day", "rate"]
    assert form.bounded["properties"]["note"]["maxLength"] == DEFAULT_MAX_LENGTH
    assert (
        OutputSchema.of(an_object(x={"items": {"type": "string"}})).bounded["properties"]["x"]["maxItems"]
        == DEFAULT_MAX_ITEMS
    )
    longest = {
        "contacts": [{"name": "x" * 30, "kind": "guest", "phone": "y" * DEFAULT_MAX_LENGTH}] * 2,
        "pair": [10**14, False],
        "day": "2026-01-31",
        "rate": 1.5,
        "note": "z" * DEFAULT_MAX_LENGTH,
    }
    assert len(json.dumps(longest)) <= form.characters < 2 * len(json.dumps(longest))


@pytest.mark.parametrize(
    "kind",
    [
        {"type": "string", "maxLength": 5_000},
        {"type": "string", "minLength": 3_000, "maxLength": 9_000.0},
        {"type": "array", "items": {"type": "string", "maxLength": 9}, "maxItems": 5_000},
    ],
)
def test_long_strings_and_lists_get_a_grammar(kind: dict[str, Any], tmp_path: Path) -> None:
    model = LlamaModel(write_tiny(tmp_path / "model.gguf"))
    sampler = GrammarSampler(model.vocab, Sampling(grammar=output_schema(an_object(x=kind)).grammar))
    brace = 3 + ord("{")  # the tokens of the tiny model are bytes
    assert sampler.pick(np.eye(model.vocab_size, dtype=np.float32)[brace]) == brace


@pytest.mark.parametrize(
    ("pattern", "matches", "other"),
    [
        (r"^\d{4}-\d{2}$", "2024-05", "May 2024"),
        (r"^\+?\d+\.\d{2}$", "+12.50", "12,50"),
        (r"^[\w\-.]+@\w+\.[a-z]+$", "a.b-c@d.org", "a b@d.org"),
        (r"^\S+ \D$", "a-1 b", "a-1 2"),
        (r"^\[\d\]$", "[1]", "1"),
        (r"^(?:[(?:]\d|n/a)$", "(1", "1"),
    ],
)
def test_patterns_with_escapes_and_groups_get_a_grammar(pattern: str, matches: str, other: str, tmp_path: Path) -> None:
    model = LlamaModel(write_tiny(tmp_path / "model.gguf"))
    grammar = output_schema(an_object(x={"type": "string", "pattern": pattern})).grammar
    for text, accepted in ((matches, True), (other, False)):
        sampler = GrammarSampler(model.vocab, Sampling(grammar=grammar))
        wanted = [3 + byte for byte in f'{{"x":"{text}"}}'.encode()]  # the tokens of the tiny model are bytes
        picked = [sampler.pick(np.eye(model.vocab_size, dtype=np.float32)[token]) for token in wanted]
        assert (picked == wanted) is accepted


def test_parts_that_are_merged() -> None:
    schema = {
        "allOf": [{"$ref": "#/$defs/a"}, {"properties": {"b": {"type": "integer"}}, "required": ["b"]}],
        "$defs": {"a": {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}, "required": ["a"]}},
    }
    finite = OutputSchema.of(schema).bounded
    assert (list(finite["properties"]), sorted(finite["required"])) == (["a", "b"], ["a", "b"])


@pytest.fixture(scope="module")
def bundled() -> Any:
    return load_reader("bundled", context_tokens=2048, threads=1)


def test_the_bundled_reader_closes_every_object(bundled: Any) -> None:
    """The longest values that the schema allows, from a small model that would ramble."""
    schema = an_object(
        story={"type": "string", "minLength": 40, "maxLength": 60},
        list={"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 2, "maxItems": 3},
        kind={"enum": ["big", "small"]},
        day={"type": "string", "format": "date"},
        nothing={"type": "null"},
    )
    form = OutputSchema.of(schema)
    stream = bundled.stream(
        [Message("user", "Tell me a long story about a cat.")],
        Sampling(max_tokens=form.characters, grammar=form.grammar),
    )
    value = json.loads("".join(stream), strict=False)
    assert stream.finish_reason == "stop"
    assert form.violation(value) is None
    assert list(value) == list(schema["properties"])


def test_the_bundled_reader_fills_in_a_form(handbook: Collection, bundled: Any) -> None:
    found = Rag(handbook, reader=bundled, k=1).extract("How many days of leave do I get?", Leave)
    assert isinstance(found.value, Leave)
    assert found.value.days == 28
    assert found.fields[0].citations[0].quote == "You get 28 days of leave."


# --- The command line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_schema_files_of_windows_are_read(tmp_path: Path, encoding: str) -> None:
    schema = an_object(größe={"type": "number"})
    (tmp_path / "schema.json").write_text(json.dumps(schema, ensure_ascii=False), encoding=encoding)
    assert read_schema(str(tmp_path / "schema.json")) == schema


def test_ask_with_a_schema(handbook: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from ragfm.cli import ragfm

    monkeypatch.setattr(
        "ragfm.rag.configured_reader", lambda *_, **__: ScriptedReader(['{"days": 28, "who": "Nobody"}'])
    )
    schema = tmp_path / "leave.json"
    schema.write_text(json.dumps(an_object(days={"type": "integer"}, who={"type": "string"})))
    words = ["ask", "-c", str(handbook.path), "How many days of leave do I get?", "--schema", str(schema)]

    def run(*words: str) -> str:
        return CliRunner().invoke(ragfm, words, catch_exceptions=False, standalone_mode=False).output

    value = json.loads(run(*words, "--json"))
    assert sorted(value) == sorted("question query value fields hits dropped usage seconds log_id".split())
    assert value["value"] == {"days": 28, "who": "Nobody"}
    assert [(field["path"], field["supported"]) for field in value["fields"]] == [("/days", True), ("/who", False)]
    assert value["fields"][0]["citations"][0]["quote"] == "You get 28 days of leave."
    shown = run(*words)
    assert '"days": 28' in shown
    assert "/days: [1] docs/leave.md:3: “You get 28 days of leave.”" in shown
    assert "/who: no passage supports it" in shown
    schema.write_text("[]")
    with pytest.raises(ConfigError, match="not a JSON schema"):
        run(*words)
    schema.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        run(*words)
