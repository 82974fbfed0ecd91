from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.shell import Shell

from ragfm import Collection, Rag, Settings
from ragfm.cli.output import answer_json
from ragfm.core.abstention import ABSTENTION
from ragfm.core.config import AskSection
from ragfm.core.errors import ConfigError, DataError
from ragfm.core.types import Hit, Message
from ragfm.generation.prompt import build_prompt, prompt_fingerprint
from ragfm.generation.prompt_template import STRATEGIES, load_strategy
from ragfm.testing import ScriptedReader

HIT = Hit("a.md", "You get 28 days.", 0, 16, 1, 0.5, {}, context="Leave")


def asked(question: str, name: str, folder: Path = Path(), **more: object) -> list[Message]:
    strategy = load_strategy(name, folder)
    return list(build_prompt(question, [HIT], ScriptedReader(), strategy=strategy, **more).messages)  # type: ignore[arg-type]


def test_zero_shot_is_what_adapters_were_trained_for() -> None:
    assert prompt_fingerprint() == "3e97a095c6d3684616e9db486ac2faa1"
    assert prompt_fingerprint(documents_only=False) == "8059a356faf2ee7aad55973deffd605f"
    assert STRATEGIES == ("chain-of-thought", "few-shot", "zero-shot")
    assert len({prompt_fingerprint(strategy=load_strategy(name)) for name in STRATEGIES}) == 3
    for name in STRATEGIES:
        assert ABSTENTION in load_strategy(name).strict.system
        assert ABSTENTION not in load_strategy(name).free.system


def test_examples_are_turns_before_the_history() -> None:
    past = [Message("user", "before"), Message("assistant", "yes")]
    zero = asked("How long?", "zero-shot", history=past)
    few = asked("How long?", "few-shot", history=past)
    assert [few[0], few[-1]] == zero
    assert [message.role for message in few[1:-1]] == ["user", "assistant"] * 3
    assert few[1].content.startswith("[1] The reading room")
    assert few[1].content.endswith("answer in one short sentence: How long may I keep a map?")
    assert ABSTENTION in [message.content for message in few]


def test_examples_count_in_the_window() -> None:
    reader = ScriptedReader(context_tokens=400)
    hits = [Hit("a.md", "word " * 60, 0, 300, n, 0.5, {}) for n in range(9)]
    few = build_prompt("Why?", hits, reader, answer_tokens=50, strategy=load_strategy("few-shot"))
    assert reader.count_tokens(few.messages) <= 350
    assert len(few.shown) < len(build_prompt("Why?", hits, reader, answer_tokens=50).shown)


CUSTOM = """
system = "S"
ask = "Q: {question} A:"
pool = "pool.jsonl"
pick = 2
"""
POOL = [
    {"passages": ["Tea is served at four."], "question": "When is tea served?", "answer": "At four [1]."},
    {
        "messages": [
            {"role": "system", "content": "x"},
            {"role": "user", "content": "[1] Dogs bark.\n\nDo dogs bark?"},
        ],
        "completion": "Yes [1].",
    },
    {"passages": ["The pool is deep."], "question": "How deep is the pool?", "answer": "I don't know."},
]


@pytest.fixture
def custom(tmp_path: Path) -> Path:
    (tmp_path / "my.toml").write_text(CUSTOM)
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, POOL)) + "\n\n")
    return tmp_path


def test_the_examples_most_like_the_question_are_picked(custom: Path) -> None:
    messages = asked("When do dogs get tea?", "my.toml", custom)
    assert [message.content for message in messages[1:5:2]] == [
        "[1] Dogs bark.\n\nDo dogs bark?",
        "[1] Tea is served at four.\n\nQ: When is tea served? A:",
    ]
    assert messages[-1].content == "[1] Leave\nYou get 28 days.\n\nQ: When do dogs get tea? A:"
    assert len(asked("zebra", "my.toml", custom)) == 2
    other = custom / "other"
    other.mkdir()
    (other / "my.toml").write_text(CUSTOM)
    (other / "pool.jsonl").write_text(json.dumps(POOL[0]))
    ours, theirs = (prompt_fingerprint(strategy=load_strategy("my.toml", folder)) for folder in (custom, other))
    assert ours != theirs


def test_labels_are_the_name_of_a_strategy_or_name_and_content_of_a_file(tmp_path: Path) -> None:
    assert [load_strategy(name).label for name in STRATEGIES] == list(STRATEGIES)
    words = "system = 'S'\nask = '{question}'\n"
    known = []
    for number, more in enumerate(("", "", "answer_after = 'So:'\n", "thinking_tokens = 9\n", "pick = 1\n")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "my.toml").write_text(words + more)
        known.append(load_strategy("my.toml", tmp_path / str(number)).label)
    assert known[0] == known[1] == load_strategy(str(tmp_path / "0" / "my.toml")).label
    assert known[0].startswith("my.toml ")
    assert len(set(known)) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("system = 'S'", "lacks 'ask'"),
        ("system = 'S'\nask = 'Q'", "no {question}"),
        ("system = 'S'\nask = '{question}'\nshots = 3", "no key `shots`"),
        ("system = ", "cannot be read"),
        ("system = 'S'\nask = '{question}'\n[[examples]]\nquestion = 'q'", "lacks 'answer'"),
        ("system = 'S'\nask = '{question}'\n[[examples]]\nquestion = 'q'\nanswer = 'a'\npassages = 'p'", "list of str"),
        ("system = 'S'\nask = '{question}'\nanswer_after = 5", "`answer_after` is not a string"),
        ("system = 'S'\nask = '{question}'\npick = 0", "`pick` is 0, not a whole number of at least 1"),
        ("system = 'S'\nask = '{question}'\nthinking_tokens = -1", "`thinking_tokens` is -1"),
    ],
)
def test_errors_in_a_strategy_file_are_reported(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "bad.toml").write_text(content)
    with pytest.raises(ConfigError, match=said):
        load_strategy("bad.toml", tmp_path)


def test_an_example_of_a_pool_may_have_any_line_break(custom: Path) -> None:
    shot = {"passages": ["Dogs\u2028bark.\x85"], "question": "Do dogs bark?", "answer": "Yes [1]."}
    (custom / "pool.jsonl").write_text(json.dumps(shot, ensure_ascii=False), encoding="utf-8")
    assert "Dogs\u2028bark.\x85" in asked("Dogs?", "my.toml", custom)[1].content


def test_files_of_windows_are_read(custom: Path) -> None:
    for path in (custom / "my.toml", custom / "pool.jsonl"):
        path.write_text(path.read_text().replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    assert load_strategy(str(custom / "my.toml")).example_turns("When is tea?")


def test_errors_in_a_pool_are_reported(custom: Path) -> None:
    with pytest.raises(ConfigError, match=r"Unknown strategy 'none'.*chain-of-thought"):
        load_strategy("none")
    (custom / "pool.jsonl").write_text('{"question": 1}')
    with pytest.raises(DataError, match="line 1 is not an example"):
        load_strategy(str(custom / "my.toml"))


@pytest.mark.parametrize(
    ("name", "said", "reasoning", "answer"),
    [
        ("chain-of-thought", "Passage 1 says 28. Answer: 28 days.", "Passage 1 says 28.", "28 days."),
        ("chain-of-thought", "28 days.", "", "28 days."),
        ("chain-of-thought", "<think>a</think>b Answer: c", "ab", "c"),
        ("zero-shot", "<think>\nHm.\n</think>\n\n28 days.", "Hm.", "28 days."),
        ("zero-shot", "</think>28 days.", "", "28 days."),
        ("zero-shot", "Hm.[/THINK]28 days.", "Hm.", "28 days."),
        ("zero-shot", "<thinking>28 or", "28 or", ""),
        ("chain-of-thought", "Answer: 28 days.", "", "28 days."),
        ("zero-shot", " Answer: 28 days. ", "", "Answer: 28 days."),
    ],
)
def test_thoughts_are_kept_apart(name: str, said: str, reasoning: str, answer: str) -> None:
    assert load_strategy(name).split_reasoning(said) == (reasoning, answer)


def test_an_answer_has_no_thoughts_in_it(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    reader = ScriptedReader(["The office never closes. Answer: The office opens at nine [1]."])
    rag = Rag(collection, reader=reader, strategy="chain-of-thought", k=1)
    stream = rag.stream("When does the office open?")
    assert list(stream) == ["The office opens at nine [1]."]
    assert stream.answer.text == "The office opens at nine [1]."
    assert stream.answer.reasoning == "The office never closes."
    assert rag.sampling.max_tokens == 512
    assert answer_json(stream.answer)["reasoning"] == "The office never closes."


@pytest.mark.slow
def test_a_setting_and_an_option_name_it(tmp_path: Path, docs: Path, custom: Path) -> None:
    shell = Shell(tmp_path)
    shell("ingest", "docs")
    answer = shell.json("ask", "How many days of leave?", "--strategy", "few-shot")
    assert "reasoning" not in answer
    few = answer["usage"]["prompt_tokens"]
    assert few > shell.json("ask", "How many days of leave?")["usage"]["prompt_tokens"] + 100
    (tmp_path / "ragfm.toml").write_text('[ask]\nstrategy = "my.toml"\n')
    assert shell.json("ask", "How many days of leave?")["usage"]["prompt_tokens"] < few - 100
    assert "Unknown strategy 'x'" in shell("ask", "How?", "--strategy", "x", code=1).stderr


def test_a_strategy_is_a_setting(collection: Collection) -> None:
    with Collection.open(collection.location, settings=Settings(ask=AskSection(strategy="few-shot"))) as handle:
        assert Rag(handle, reader=ScriptedReader()).strategy.name == "few-shot"
