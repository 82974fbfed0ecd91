"""Evaluation: how well a collection finds, how right its answers are, and whether one run is better than another.

from ragfm import Collection
from ragfm.evaluation import evaluate_retrieval, load_questions
report = evaluate_retrieval(Collection.open("handbook"), load_questions("questions.jsonl").questions, out="a.run.jsonl")
print(report.measures["nDCG@10"])
"""

from __future__ import annotations

from ragfm.evaluation.answer_evaluation import (
    AnsweredQuestion,
    AnswersReport,
    Outcome,
    Shown,
    evaluate_answers,
    risk_coverage,
)
from ragfm.evaluation.answer_report import answers_summary, write_answers_html
from ragfm.evaluation.calibration import CalibrationReport, calibrate
from ragfm.evaluation.corpus import TimedEmbedder, corpus_collection
from ragfm.evaluation.html_report import summary, write_html
from ragfm.evaluation.metrics import Estimate, Ranked
from ragfm.evaluation.question_generation import write_questions
from ragfm.evaluation.question_sets import Gold, Question, QuestionSet, load_questions
from ragfm.evaluation.reader_comparison import Contender, Entry, compare_readers, contenders
from ragfm.evaluation.retrieval_evaluation import QuestionResult, RetrievalReport, evaluate_retrieval, first_ranks
from ragfm.evaluation.run_comparison import Changed, Comparison, Difference, compare_runs
from ragfm.evaluation.run_file import read_run
from ragfm.evaluation.search_tuning import Choice, Trial, TuneReport, tune
from ragfm.evaluation.settings_file import choice_keys, store_calibration, store_choice

__all__ = [
    "AnsweredQuestion",
    "AnswersReport",
    "CalibrationReport",
    "Changed",
    "Choice",
    "Comparison",
    "Contender",
    "Difference",
    "Entry",
    "Estimate",
    "Gold",
    "Outcome",
    "Question",
    "QuestionResult",
    "QuestionSet",
    "Ranked",
    "RetrievalReport",
    "Shown",
    "TimedEmbedder",
    "Trial",
    "TuneReport",
    "answers_summary",
    "calibrate",
    "choice_keys",
    "compare_readers",
    "compare_runs",
    "contenders",
    "corpus_collection",
    "evaluate_answers",
    "evaluate_retrieval",
    "first_ranks",
    "load_questions",
    "read_run",
    "risk_coverage",
    "store_calibration",
    "store_choice",
    "summary",
    "tune",
    "write_answers_html",
    "write_html",
    "write_questions",
]
