from __future__ import annotations

from pathlib import Path

import pytest
from support.shell import Shell

from ragfm import Collection, Rag, Settings
from ragfm.cli.output import answer_json
from ragfm.core.abstention import ABSTENTION
from ragfm.core.config import AskSection
from ragfm.core.errors import ConfigError
from ragfm.core.types import Hit, Message
from ragfm.generation.prompt import build_prompt, prompt_fingerprint
from ragfm.generation.prompt_template import load_strategy
from ragfm.generation.reader_output import split_reasoning
from ragfm.testing import ScriptedReader

HIT = Hit("a.md", "You get 28 days.", 0, 16, 1, 0.5, {}, context="Leave")
TEXTS = "system = 'S'\nask = 'Q: {question} A:'\n"
EXAMPLES = """
[[examples]]
passages = ["Tea is served at four."]
question = "When is tea served?"
answer = "At four [1]."

[[examples]]
passages = ["The pool is deep."]
question = "How deep is the pool?"
answer = "I don't know."
"""


@pytest.fixture
def custom(tmp_path: Path) -> Path:
    (tmp_path / "my.toml").write_text(TEXTS + EXAMPLES)
    return tmp_path


def test_zero_shot_is_what_adapters_were_trained_for() -> None:
    assert prompt_fingerprint() == "3e97a095c6d3684616e9db486ac2faa1"
    assert prompt_fingerprint(documents_only=False) == "8059a356faf2ee7aad55973deffd605f"
    assert ABSTENTION in load_strategy().strict.system
    assert ABSTENTION not in load_strategy().free.system


def test_examples_are_turns_before_the_history(custom: Path) -> None:
    past = [Message("user", "before"), Message("assistant", "yes")]
    strategy = load_strategy("my.toml", custom)
    built = build_prompt("How long?", [HIT], ScriptedReader(), history=past, strategy=strategy)
    messages = [(message.role, message.content) for message in built.messages]
    assert messages[:5] == [
        ("system", "S"),
        ("user", "[1] Tea is served at four.\n\nQ: When is tea served? A:"),
        ("assistant", "At four [1]."),
        ("user", "[1] The pool is deep.\n\nQ: How deep is the pool? A:"),
        ("assistant", "I don't know."),
    ]
    assert messages[5:] == [
        ("user", "[1] Leave\nYou get 28 days.\n\nQ: before\nA: yes\n\nQ: How long? A:"),
    ]


def test_examples_count_in_the_window(custom: Path) -> None:
    reader = ScriptedReader(context_tokens=400)
    hits = [Hit("a.md", "word " * 60, 0, 300, n, 0.5, {}) for n in range(9)]
    long = custom / "long.toml"
    long.write_text(TEXTS + EXAMPLES.replace("The pool is deep.", "The pool is deep. " * 40))
    shown = build_prompt("Why?", hits, reader, answer_tokens=50, strategy=load_strategy(str(long)))
    assert reader.count_tokens(shown.messages) <= 350
    assert len(shown.shown) < len(build_prompt("Why?", hits, reader, answer_tokens=50).shown)


def test_label_and_fingerprint_change_with_the_content_of_a_file(tmp_path: Path) -> None:
    assert load_strategy().label == "zero-shot"
    strategies = []
    for number, content in enumerate((TEXTS, TEXTS, TEXTS.replace("'S'", "'T'"), TEXTS + EXAMPLES)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "my.toml").write_text(content)
        strategies.append(load_strategy("my.toml", tmp_path / str(number)))
    labels = [strategy.label for strategy in strategies]
    assert labels[0] == labels[1] == load_strategy(str(tmp_path / "0" / "my.toml")).label
    assert labels[0].startswith("my.toml ")
    assert len(set(labels)) == len({prompt_fingerprint(strategy=strategy) for strategy in strategies}) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("system = 'S'", "lacks 'ask'"),
        ("system = 'S'\nask = 'Q'", "no {question}"),
        ("system = 'S'\nask = '{question}'\nshots = 3", "no key `shots`"),
        ("system = ", "cannot be read"),
        ("system = 'S'\nask = '{question}'\n[[examples]]\npassages = []\nquestion = 'q'", "lacks 'answer'"),
        ("system = 'S'\nask = '{question}'\n[[examples]]\nquestion = 'q'\nanswer = 'a'\npassages = 'p'", "list of str"),
        ("system = 'S'\nask = '{question}'\n[[examples]]\nquestion = ''\nanswer = 'a'\npassages = []", "non-empty"),
    ],
)
def test_errors_in_a_strategy_file_are_reported(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "bad.toml").write_text(content)
    with pytest.raises(ConfigError, match=said):
        load_strategy("bad.toml", tmp_path)


def test_an_unknown_strategy_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"Unknown strategy 'none'.*zero-shot"):
        load_strategy("none")


def test_files_of_windows_are_read(custom: Path) -> None:
    path = custom / "my.toml"
    path.write_text(path.read_text().replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    assert len(load_strategy(str(path)).examples) == 4


@pytest.mark.parametrize(
    ("said", "reasoning", "answer"),
    [
        ("<think>\nHm.\n</think>\n\n28 days.", "Hm.", "28 days."),
        ("</think>28 days.", "", "28 days."),
        ("Hm.[/THINK]28 days.", "Hm.", "28 days."),
        ("<thinking>28 or", "28 or", ""),
        (" Answer: 28 days. ", "", "Answer: 28 days."),
    ],
)
def test_thoughts_are_kept_apart(said: str, reasoning: str, answer: str) -> None:
    assert split_reasoning(said) == (reasoning, answer)


def test_an_answer_has_no_thoughts_in_it(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    reader = ScriptedReader(["<think>The office never closes.</think>The office opens at nine [1]."])
    stream = Rag(collection, reader=reader, k=1).stream("When does the office open?")
    assert "".join(stream) == "The office opens at nine [1]."
    assert stream.answer.text == "The office opens at nine [1]."
    assert stream.answer.reasoning == "The office never closes."
    assert answer_json(stream.answer)["reasoning"] == "The office never closes."


@pytest.mark.slow
def test_a_setting_and_an_option_name_it(tmp_path: Path, docs: Path, custom: Path) -> None:
    shell = Shell(tmp_path)
    shell("ingest", "docs")
    few = shell.json("ask", "How many days of leave?", "--strategy", "my.toml")["usage"]["prompt_tokens"]
    (tmp_path / "short.toml").write_text(TEXTS)
    (tmp_path / "ragfm.toml").write_text('[ask]\nstrategy = "short.toml"\n')
    assert shell.json("ask", "How many days of leave?")["usage"]["prompt_tokens"] < few - 30
    assert "Unknown strategy 'x'" in shell("ask", "How?", "--strategy", "x", code=1).stderr


def test_a_strategy_is_a_setting(collection: Collection, custom: Path) -> None:
    strategy = str(custom / "my.toml")
    with Collection.open(collection.location, settings=Settings(ask=AskSection(strategy=strategy))) as handle:
        assert Rag(handle, reader=ScriptedReader()).strategy.label.startswith("my.toml ")
