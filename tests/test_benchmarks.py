"""The calculations of the benchmarks, and the tables of docs/benchmarks.md."""

import importlib
import io
import json
import random
import re
import subprocess
import sys
import zipfile
from concurrent.futures import Future
from pathlib import Path

import pytest

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.core.types import Chunk, Document
from ragfm.testing import ScriptedReader

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of `benchmarks/` by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    imported = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - imported:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_tables_on_the_page_match_the_results(benchmark):
    tables = benchmark("tables")
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.render(page, benchmark("rendering").Results()) == page, "Run python benchmarks/tables.py."
    functions = {
        f"{path.stem}.{name}"
        for path in BENCHMARKS.glob("bench_*.py")
        for name in re.findall(r"^def (\w+)\(results: rendering.Results\)", path.read_text(encoding="utf-8"), re.M)
    }
    assert functions == set(re.findall(r"<!-- table: ([\w.]+) -->\n\|", page))


def test_a_changed_result_changes_its_table(benchmark, tmp_path):
    tables, rendering = benchmark("tables"), benchmark("rendering")
    page = tables.PAGE.read_text(encoding="utf-8")
    for path in rendering.Results().folder.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    result = json.loads((tmp_path / "calculations.json").read_text(encoding="utf-8"))
    result["halves"]["reporting"]["right"][0] = 0.123
    (tmp_path / "calculations.json").write_text(json.dumps(result), encoding="utf-8")
    rendered = tables.render(page, rendering.Results(tmp_path))
    changed = [line for line in rendered.splitlines() if line not in page.splitlines()]
    assert len(changed) == 1
    assert "0.123" in changed[0]


def test_each_benchmark_is_in_the_catalog_with_its_results_and_the_code_it_measures(benchmark):
    catalog = benchmark("catalog")
    entries = {one.name: one for one in catalog.benchmarks()}
    scripts = {path.stem.removeprefix("bench_") for path in BENCHMARKS.glob("bench_*.py")}
    assert entries.keys() == scripts, "Add the benchmark to benchmarks/catalog.toml, or remove its entry."
    for one in entries.values():
        assert one.measures
        assert [path for path in one.measures if not (BENCHMARKS.parent / path).exists()] == [], one.name
        assert [name for name in one.results if not (catalog.RESULTS / f"{name}.json").exists()] == [], one.name


def test_readme_lists_the_benchmarks(benchmark):
    catalog, tables = benchmark("catalog"), benchmark("tables")
    readme = tables.README.read_text(encoding="utf-8")
    assert readme.endswith(f"\n{catalog.readme()}\n"), "Run python benchmarks/tables.py --readme."


def test_results_are_stale_after_a_change_of_the_measured_code(benchmark, tmp_path):
    catalog = benchmark("catalog")

    def git(*arguments):
        name = ("-c", "user.name=ragfm", "-c", "user.email=ragfm@example.com")
        done = subprocess.run(["git", *name, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def change(path):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(path, encoding="utf-8")
        git("add", ".")
        git("commit", "-m", path)
        return git("rev-parse", "--short=12", "HEAD")

    try:
        git("init")
    except OSError:
        pytest.skip("git is not installed")
    measured = change("store/catalog.py")
    change("server/app.py")
    assert catalog.commits_since(measured, ("store",), tmp_path) == 0
    change("store/views.py")
    assert catalog.commits_since(measured, ("store", "server"), tmp_path) == 2
    assert catalog.commits_since("0123456789ab", ("store",), tmp_path) is None
    assert catalog.commits_since("", ("store",), tmp_path) is None


def test_reader_tables_show_the_measured_values(benchmark):
    reader = benchmark("bench_reader")
    result = benchmark("rendering").Results()["reader"]
    entry = next(entry for entry in result.values() if "soak" in entry)
    entry["soak"] |= {"answers": 9001, "stopped": 600, "mixed": 7, "failed": 0, "megabytes": [500, 501]}
    del entry["talking"]["llama-server"]  # its program must be built by hand
    result["alike"] = {"prompts": 40, "F32": {"same_texts": 0.95, "same_tokens": 0.991}}
    waits, rates = reader.waits_table({"reader": result}), reader.table({"reader": result})
    assert waits.endswith("| 9,001, 600 | 7, 0 | 500, 501 | F32 95.0% |")
    assert f"{entry['talking']['llama_cpp.server']:.3g} / - / " in rates
    for table in (waits, rates):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_goals_report_what_was_missed(benchmark):
    def modes(dense, keyword, hybrid):
        values = {"dense": dense, "keyword": keyword, "hybrid": hybrid}
        return {
            "modes": {mode: {"measures": {"nDCG@10": [v, 0, 1], "MRR@10": [v, 0, 1]}} for mode, v in values.items()}
        }

    goals = benchmark("bench_retrieval").goals
    sets = {"SciFact test": modes(0.65, 0.7, 0.72), "npl": modes(0.3, 0.4, 0.39), "SQuAD dev": modes(0.6, 0.8, 0.81)}
    assert [goal["reached"] for goal in goals(sets)] == [False, True, False, True, True]
    assert goals({"cranfield": modes(0, 0, 0)}) == []


def test_rankings_of_peers_are_measured_like_ours(benchmark):
    from ragfm.evaluation import Gold, Question, QuestionSet

    gold = (Gold("corpus/a.md", grade=2), Gold("corpus/b.md"))
    data = QuestionSet("set", (Question("1", "?", gold), Question("2", "?", (Gold("corpus/c.md"),))))
    values = benchmark("bench_peers").values(data, {"1": ["x.md", "a.md", "b.md"], "2": ["x.md"]})
    ndcg = (2 / 1.5849625 + 1 / 2) / (2 + 1 / 1.5849625)
    assert values[0].tolist() == pytest.approx([ndcg, 1 / 2, 1, 1])
    assert values[1].tolist() == [0, 0, 0, 0]


def test_reranked_searches_are_compared_with_each_other(benchmark):
    from ragfm.evaluation import Gold, Question, QuestionSet

    data = QuestionSet("set", (Question("1", "?", (Gold("corpus/a.md"),)),))
    measured = benchmark("bench_peers").measured

    def result(plain, reranked):
        return {"reranked": "both", "ways": {"plain": {"found": {"1": plain}}, "both": {"found": {"1": reranked}}}}

    _, ours = measured(data, result(["x.md", "a.md"], ["a.md"]), {})
    entry, _ = measured(data, result(["a.md"], ["x.md", "x.md", "x.md", "a.md"]), ours)
    differences = {way: run["ragfm_minus_this"]["MRR@10"][0] for way, run in entry["ways"].items()}
    assert differences == {"plain": -0.5, "both": 0.75}


@pytest.mark.slow  # imports PyTorch
def test_fixed_weight_ignores_codes_and_documents(benchmark):
    import numpy as np

    ranking, candidates = benchmark("bench_ranking"), benchmark("candidates")
    record = {
        "question": "AB-1234/5",
        "grades": [1],
        "by_passage": True,
        "ids": [1, 2, 3],
        "documents": [0, 0, 1],
        "dense": [1.0, 0.0, 0.5],
        "keyword": [0.0, 1.0, 0.0],
        "names": [0.0, 0.0, 0.0],
        "gold": [-1, 0, -1],
        "right": [False, True, False],
        "texts": {},
    }
    pool = candidates._pool(record)
    assert ranking.fixed_weight(pool) == pytest.approx([0.6, 0.4, 0.3])
    assert ranking.scores(pool, documents=False) == pytest.approx([0.4, 0.6, 0.2])
    assert np.argmax(ranking.scores(pool)) == 1


def test_runner_searches_deeper_if_passages_share_documents(benchmark):
    calls = []

    def search(query, k):
        calls.append((query, k))
        return [f"{number // 4}.md" for number in range(k)]

    result = benchmark("baselines.runner").ask(search, {"1": "first"})
    assert result["found"]["1"] == [f"{number}.md" for number in range(10)]
    assert calls == [("first", 10), ("first", 40), ("first", 10), ("first", 40)]
    assert 0 <= result["p50_ms"] <= result["p95_ms"]


def test_installed_sizes_include_dependencies_without_extras(benchmark):
    sizes = benchmark("baselines.runner").installed(("sentence-transformers",))
    assert {"sentence-transformers", "torch", "numpy"} <= set(sizes)
    assert sizes["torch"] > 100
    assert "pytest" not in sizes


@pytest.mark.data
def test_multihop_questions_have_their_passages(benchmark):
    data = benchmark("data")
    for loaded, max_passages in ((data.hotpotqa(), 2), (data.musique(), 4)):
        golds = [{gold.uri.removeprefix("corpus/") for gold in question.gold} for question in loaded.questions]
        assert len(golds) == 100
        assert {len(gold) for gold in golds} == set(range(2, max_passages + 1))
        assert all(gold <= set(loaded.documents) for gold in golds)
    lilu = next(question for question in data.hotpotqa().questions if "Gallu" in question.text)
    texts = [data.hotpotqa().documents[gold.uri.removeprefix("corpus/")] for gold in lilu.gold]
    assert sorted(text.splitlines()[0] for text in texts) == ["# Alû", "# Lilu (mythology)"]


@pytest.mark.data
def test_pubmedqa_training_and_test_questions_are_disjoint(benchmark):
    train, test = (benchmark("data").pubmedqa(test=test) for test in (False, True))
    assert len(train.questions) == len(test.questions) == 500
    assert not {q.id for q in train.questions} & {q.id for q in test.questions}
    for data in (train, test):
        assert {q.answers for q in data.questions} == {("yes",), ("no",), ("maybe",)}
        assert {q.gold[0].uri.removeprefix("corpus/") for q in data.questions} <= set(data.documents)


@pytest.mark.parametrize(("name", "questions", "unanswerable"), [("canal", 60, 20), ("handbook", 30, 10)])
def test_documents_of_transfer_sets_contain_the_answers(benchmark, tmp_path, embedder, name, questions, unanswerable):
    from ragfm import Collection, Settings
    from ragfm.evaluation import load_questions
    from ragfm.evaluation.answer_matching import contains_answer, is_yes_no, normalize

    transfer = benchmark("bench_transfer")
    folder = transfer.HERE / name if name == "canal" else transfer.HANDBOOK
    asked = load_questions(transfer.HERE / f"{name}.jsonl", answers=True).questions
    assert len(asked) == len({normalize(question.text) for question in asked}) == questions
    assert sum(question.unanswerable for question in asked) == unanswerable
    with Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder=embedder) as collection:
        report = collection.sync(folder, name=name)
        texts = {info.uri: collection.document(info.uri).text for info in collection.documents()}
    assert (report.failed, report.skipped) == ((), ())
    assert {gold.uri for question in asked for gold in question.gold} <= set(texts)
    for question in asked:
        if not question.unanswerable and not is_yes_no(question.answers):
            # the first answer is verbatim, the others are paraphrases
            assert contains_answer(texts[question.gold[0].uri], question.answers[:1]), question
            assert not contains_answer(question.text, question.answers), question


def test_differences_of_an_adapter_are_paired_by_question(benchmark):
    from ragfm.core.calibration import Calibration
    from ragfm.evaluation import AnsweredQuestion, AnswersReport, Outcome

    def report(*values):
        """A report on two answerable questions and an unanswerable one."""
        results = [
            AnsweredQuestion(
                str(at),
                "?",
                (),
                ("yes",),
                at == 2,
                {},
                {
                    "retrieved": Outcome(
                        "Yes." if value else "No", f1=value, contained=value, exact=value, confidence=0.3 * (2 - at)
                    )
                },
            )
            for at, value in enumerate(values)
        ]
        return AnswersReport({}, tuple(results), {}, {})

    transfer = benchmark("bench_transfer")
    differences = transfer.differences(report(0.0, 0.5, 1.0), report(1.0, 0.5, 0.0))
    assert differences["f1, answerable"][0] == 0.5
    assert differences["f1, all"][0] == 0
    assert differences["abstention recall"][0] == -1
    shown = transfer.withheld(report(1.0, 1.0, 0.0), Calibration("", 0, {}, {}, threshold=0.5))
    assert [result.outcomes["retrieved"].f1 for result in shown.results] == [1, 0, 1]
    assert shown.kinds["right abstention"] == 1
    verdicts = transfer.verdicts(report(1.0, 0.0, 0.0))
    assert verdicts["said"] == {"yes": 1, "no": 2}
    assert verdicts["macro_f1"] == pytest.approx((2 * 1 / 4) / 3, abs=1e-4)
    assert verdicts["majority"] == 1


@pytest.mark.data
def test_squad_is_every_tenth_question_over_all_paragraphs(benchmark):
    data = benchmark("data").squad()
    assert (len(data.questions), len(data.documents)) == (1057, 20_963)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ParseError("OverflowError: cannot convert float infinity to integer"), "exception"),
        (KeyError("name"), "exception"),
        (ParseError("input.xls cannot be parsed: its parser crashed (SIGABRT)."), "crash"),
        (ParseError("input.pdf is a damaged PDF: no page can be read."), "refused"),
        (SkipDocument("input.txt has no text."), "skipped"),
    ],
)
def test_fuzzing_tells_unexpected_errors_from_refusals(benchmark, error, outcome):
    future = Future()
    future.set_exception(error)
    assert benchmark("bench_fuzz").judge(future)[0] == outcome


def test_fuzzing_damages_files_in_archives(benchmark):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("document.xml", "<text>12 and 34</text>" * 50)
    original = packed.getvalue()
    damage = benchmark("bench_fuzz").damage
    copies = [damage(random.Random(seed), original) for seed in range(30)]
    assert all(data != original for _, data in copies)
    assert any("document.xml" in how and zipfile.ZipFile(io.BytesIO(data)).testzip() is None for how, data in copies)
    assert damage(random.Random(1), original) == damage(random.Random(1), original)


TABLE = """| (in millions) | 2016 | 2017 |
| --- | --- | --- |
| Net sales | $1,200 | $1,400 |
| Inventories | 300 | — |
| Loans | 5 | 6 |
| Loans | 7 | 8 |"""


def test_cells_of_a_table_have_their_row_and_column(benchmark):
    tables = benchmark("table_questions")
    passage = tables.Passage("a.pdf", "Hill Stores 2017 10K > Sales", f"As follows:\n\n{TABLE}")
    found = [(cell.label, cell.column, passage.text[cell.start : cell.end]) for cell in tables.cells(passage)]
    assert found == [
        ("Net sales", "2016", "$1,200"),
        ("Net sales", "2017", "$1,400"),
        ("Inventories", "2016", "300"),
    ]
    continued = tables.Passage("a.pdf", "\n".join(TABLE.splitlines()[:2]), "| Inventories | 300 | 400 |")
    assert [cell.column for cell in tables.cells(continued)] == ["2016", "2017"]


def test_table_questions_are_answered_by_one_passage_and_not_by_the_others(benchmark):
    tables = benchmark("table_questions")
    other = TABLE.replace("1,", "3,").replace("2016", "2012").replace("2017", "2013").replace("300", "70")
    every = [
        tables.Passage("a.pdf", "Hill Stores 2017 10K > Sales", TABLE),
        tables.Passage("a.pdf", "Hill Stores 2013 10K > Sales", other),
    ]
    found = list(tables.table_questions(every, 40, random.Random(0), changed=0.5))
    answers = {question: passage.text[start:end] for question, passage, start, end in found if start >= 0}
    assert set(answers.values()) >= {"$1,200", "$1,400", "300"}
    wrong = [(question, passage) for question, passage, start, _ in found if start < 0]
    assert len(wrong) >= 40
    for question, passage in wrong:
        if question in answers:  # another passage, or without the row
            assert answers[question] not in passage.text
        else:  # the same passage, of another year or company than the question
            year = next(word for word in question.replace("FY", " ").replace("?", " ").split() if word.isdigit())
            assert year not in passage.text or tables.company(passage) not in question


def test_invented_tables_have_questions(benchmark):
    tables = benchmark("table_questions")
    found = tables.invented_tables(3, random.Random(0))
    assert len(found) == 9
    assert all(list(tables.cells(passage)) for passage in found)


def test_vision_pages_have_one_right_answer(benchmark):
    from ragfm.testing import ScriptedReader

    bench = benchmark("bench_vision")
    questions = list(bench.draw_pages(9))
    assert [one.page.data for one in questions] == [one.page.data for one in bench.draw_pages(9)]
    assert len({one.page.data for one in questions}) == 9
    for one in questions:
        assert bench.is_right(f"It is {one.answer}.", one)
        assert not bench.is_right(f"It is {one.answer} or {one.others[0]}.", one)
        assert not bench.is_right("I cannot tell.", one)
    answers = {f"{one.page.digest} {one.question}": one.answer for one in questions}

    def look(messages):
        (image,) = messages[-1].images or (None,)
        return next((answers[key] for key in answers if image and key.startswith(image.digest)), "No idea.")

    result = bench.evaluate(ScriptedReader(look, vision=True, image_tokens=50), questions)
    assert {kind: (row["right"], row["blind"]) for kind, row in result["kinds"].items()} == dict.fromkeys(
        bench.KINDS, (1.0, 0.0)
    )
    assert result["page_tokens"] == 50


def test_sub_questions_add_their_hits(benchmark):
    merged_measures = benchmark("bench_multihop").merged_measures
    one = [f"{number}.md" for number in range(10)]
    row = {"gold": ["0.md", "x.md"], "one": one, "sub": [["y.md"], ["x.md"]]}
    assert merged_measures([row], "one", 0).tolist() == [[0.5, 0]]
    assert merged_measures([row], "one", 0.1).tolist() == [[0.5, 0]]
    assert merged_measures([row], "one", 0.7).tolist() == [[1, 1]]


def test_sentences_are_written_from_the_part_of_the_document_first(benchmark, monkeypatch, tmp_path):
    module = benchmark("bench_chunking")
    document = Document("notes/mill.txt", "The mill is old.\n\nIt stands on the Aller.", "text/plain")
    flat = [(document, Chunk(document.text[a:b], a, b)) for a, b in ((0, 16), (18, len(document.text)))]
    reader = ScriptedReader(["About its age.", "About its place."])
    monkeypatch.setattr(module, "load_reader", lambda *_, **__: reader)
    sentences, cost = module.write_sentences(flat, "scripted", tmp_path / "sentences.json", 1)
    assert sentences == ["About its age.", "About its place."]
    assert cost["cached_tokens"] == 0
    first, second = (prompt[-1].text for prompt in reader.prompts)
    assert first.startswith(f"mill\n\n{document.text}\n\nPassage:\nThe mill")
    assert second.startswith(f"mill\n\n{document.text}\n\nPassage:\nIt stands")
    assert module.write_sentences(flat, "scripted", tmp_path / "sentences.json", 1)[0] == sentences
    assert len(reader.prompts) == 2, "the second run reads them from the file"


@pytest.mark.data
def test_spans_in_whole_articles_are_their_answers(benchmark, data):
    path = data / "squad" / "squad-v2.0-dev.json.gz"
    asked = benchmark("data").squad_whole_articles(path)
    assert (len(asked.questions), len(asked.documents)) == (5928, 35)
    for question in asked.questions:
        (gold,) = question.gold
        assert asked.documents[gold.uri.removeprefix("corpus/")][gold.start : gold.end] in question.answers
