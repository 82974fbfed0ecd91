"""Evaluate retrieval and answers on labelled questions, and tune on them.

A question set is loaded by `load_questions` (BEIR, SQuAD or JSONL), or built from `Question` and `Gold`.
`corpus_collection` ingests the documents that a data set includes.

Measure:

- `evaluate_retrieval(collection, questions)`: nDCG, MRR, MAP, recall and latency of searches.
- `evaluate_answers(rag, questions)`: F1, exact match, abstention, citations and latency of answers.

Compare:

- `compare_runs(a, b)`: two run files question by question, with intervals and p-values.
- `compare_readers(contenders, questions, collection, folder)`: readers, adapters, strategies and passage counts on the
  same questions, each in a process of its own; `contender_grid` gives all combinations.

Tune:

- `tune(collection, questions)`: the weight of hybrid search; `store_weight` writes it to `ragfm.toml`.
- `calibrate(rag, questions)`: the confidence of answers; `store_calibration` writes it to `ragfm.toml`.

The functions with an `out` parameter write a run file, from which an interrupted run is resumed and which
`read_run` reads.

Example:
    from ragfm import Collection
    from ragfm.evaluation import evaluate_retrieval, load_questions

    questions = load_questions("questions.jsonl").questions
    report = evaluate_retrieval(Collection.open("handbook"), questions, out="a.run.jsonl")
    print(report.measures["nDCG@10"].value)

Modules:
    question_sets, log_questions, log_insights          questions: labelled, from the answer log, its summary
    corpus                                              the documents of a data set as a collection
    retrieval_evaluation, answer_evaluation             evaluate searches and answers
    answer_matching, reader_verdict, metrics            compare answers; measures and intervals
    run_file, run_comparison                            run files, and two of them compared
    reader_comparison                                   readers compared, each in its process
    search_tuning, confidence_calibration               tune search; calibrate confidence
    verified_tuning                                     what labels allow to promise about citations and answers
    settings_file                                       store tuned settings

"""

from __future__ import annotations

from ragfm.evaluation.answer_evaluation import (
    AnsweredQuestion,
    AnswersReport,
    Outcome,
    ShownPassage,
    evaluate_answers,
)
from ragfm.evaluation.confidence_calibration import CalibrationReport, calibrate
from ragfm.evaluation.corpus import corpus_collection
from ragfm.evaluation.metrics import Estimate, Ranked
from ragfm.evaluation.question_sets import Gold, Question, QuestionSet, load_questions
from ragfm.evaluation.reader_comparison import (
    Contender,
    ContenderResult,
    compare_readers,
    contender_grid,
)
from ragfm.evaluation.retrieval_evaluation import QuestionResult, RetrievalReport, evaluate_retrieval, first_ranks
from ragfm.evaluation.run_comparison import ChangedQuestion, Comparison, Difference, compare_runs
from ragfm.evaluation.run_file import read_run
from ragfm.evaluation.search_tuning import Trial, TuneReport, tune
from ragfm.evaluation.settings_file import store_calibration, store_weight

__all__ = [
    "AnsweredQuestion",
    "AnswersReport",
    "CalibrationReport",
    "ChangedQuestion",
    "Comparison",
    "Contender",
    "ContenderResult",
    "Difference",
    "Estimate",
    "Gold",
    "Outcome",
    "Question",
    "QuestionResult",
    "QuestionSet",
    "Ranked",
    "RetrievalReport",
    "ShownPassage",
    "Trial",
    "TuneReport",
    "calibrate",
    "compare_readers",
    "compare_runs",
    "contender_grid",
    "corpus_collection",
    "evaluate_answers",
    "evaluate_retrieval",
    "first_ranks",
    "load_questions",
    "read_run",
    "store_calibration",
    "store_weight",
    "tune",
]
