"""Evaluation: how well a collection finds, how right its answers are, and whether one run is better than another.

from ragfm import Collection
from ragfm.evaluate import evaluate_retrieval, load_questions
report = evaluate_retrieval(Collection.open("handbook"), load_questions("questions.jsonl").questions, out="a.run.jsonl")
print(report.measures["nDCG@10"])
"""

from __future__ import annotations

from ragfm.evaluate.answers import AnsweredQuestion, AnswersReport, Outcome, Shown, evaluate_answers, risk_coverage
from ragfm.evaluate.answers_report import answers_summary, write_answers_html
from ragfm.evaluate.calibrate import CalibrationReport, calibrate
from ragfm.evaluate.choice import choice_keys, store_calibration, store_choice
from ragfm.evaluate.compare import Changed, Comparison, Difference, compare_runs
from ragfm.evaluate.corpus import TimedEmbedder, corpus_collection
from ragfm.evaluate.data import Gold, Question, QuestionSet, load_questions
from ragfm.evaluate.measures import Estimate, Ranked
from ragfm.evaluate.report import summary, write_html
from ragfm.evaluate.retrieval import QuestionResult, RetrievalReport, evaluate_retrieval, first_ranks
from ragfm.evaluate.runs import read_run
from ragfm.evaluate.tune import Choice, Trial, TuneReport, tune
from ragfm.evaluate.versus import Contender, Entry, compare_readers, contenders
from ragfm.evaluate.written import write_questions

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
