"""Kill `ragfm adapt refresh` at random moments until it has adopted an adapter, and compare with a run without kills.

    python benchmarks/bench_adapt_kills.py [--kills 50] [--seed 0]

A tiny GGUF model with random weights learns from 40 corrected answers to abstain, which llama.cpp then serves. Each run
is a fork that is killed with SIGKILL after a random time: while it makes examples, trains, exports, tests or adopts.
After each kill, the collection's adapter is loaded and asked: it must be none or the complete new one. The next fork
continues. A refresh that has ended starts again from a copy of the collection, until there were enough kills. The
losses of each must equal those without kills to 1e-4. The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAGFM_EMBEDDER"] = "hashing"

import llama_cpp  # noqa: F401  loaded once, for all forks
import peft  # noqa: F401
import tomlkit  # noqa: F401
import torch
from measure import about, save
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.tiny_models import tiny_config, tiny_gguf

from ragfm import Answer, Collection, Rag, Usage
from ragfm.core.abstention import ABSTENTION
from ragfm.generation.answer_log import AnswerContext
from ragfm.models.adapters import CHECKPOINT, GGUF, RECORD, read_record
from ragfm.training.gguf_lora import ModelShape
from ragfm.training.refresh import DECISION, RefreshSettings, next_folder, refresh

QUESTIONS = [f"What is the code of room {number}?" for number in range(40)]
SETTINGS = replace(
    RefreshSettings(), training=replace(RefreshSettings().training, epochs=20, rate=2e-2, checkpoint_seconds=0)
)
TOLERANCE = 1e-4


def prepare(folder: Path) -> None:
    """A collection with a log of answers that were corrected to an abstention."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(max_position_embeddings=2048))
    tiny_gguf(model, folder / "model.gguf", ModelShape.from_config(model.config))
    (folder / "docs").mkdir()
    for number in range(4):
        (folder / "docs" / f"{number}.md").write_text(
            f"Tree {number} stands in the yard. It is {number} metres tall.\n"
        )
    settings = f'reader = "{folder / "model.gguf"}"\n\n[ask]\nk = 1\nanswer_tokens = 24\n'
    (folder / "ragfm.toml").write_text(settings)
    said = Answer("q", "?", "answered", (), (), (), Usage(), 0.5, query="q")
    context = AnswerContext("tiny", None, None, None, 0.0, 0.1)
    with Collection.open(folder / ".ragfm") as collection:
        collection.sync(folder / "docs")
        for question in QUESTIONS:
            hits = tuple(collection.search(question, 20))
            number = collection.answer_log.add(replace(said, question=question, query=question, hits=hits), context)
            collection.answer_log.rate(number, "down", ABSTENTION)


def run(folder: Path) -> None:
    with Collection.open(folder / ".ragfm") as collection:
        refresh(collection, next_folder(collection, SETTINGS)[0], SETTINGS)


def ask(folder: Path) -> None:
    """Serve with the adapter of the settings, if there is one."""
    with Collection.open(folder / ".ragfm") as collection:
        adapter = collection.settings.adapter
        answer = Rag(collection).ask("What is the code of room 99?")
        if adapter and not answer.abstained:
            raise SystemExit(f"The adapter {adapter} answers {answer.text!r}.")


def fork(function: Callable[[Path], None], folder: Path) -> int:
    """The process of a fork that runs a function."""
    if child := os.fork():
        return child
    try:
        torch.set_num_threads(1)
        with (folder / "output.txt").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        function(folder)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait(child: int, folder: Path) -> int:
    """The signal that ended a fork, 0 if it ended well."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status > 0:
        raise SystemExit((folder / "output.txt").read_text())
    return -status


def stage(folder: Path) -> str:
    """What a refresh was doing when it was killed."""
    adapters = folder / ".ragfm-adapters" / "001"
    if not (adapters / "examples" / "card.json").exists():
        return "data"
    if not (adapters / RECORD).exists():
        return "train" if (adapters / CHECKPOINT).exists() else "before the first checkpoint"
    if not (adapters / GGUF).exists():
        return "export"
    return "adopted" if (adapters / DECISION).exists() else "test and adopt"


def losses(folder: Path) -> dict[str, Any]:
    numbers = read_record(folder / ".ragfm-adapters" / "001").numbers
    return {**numbers["loss"], **{f"valid {step}": value for step, value in numbers["valid"].items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance, stages, rounds, worst = random.Random(args.seed), Counter[str](), 0, 0.0
    with tempfile.TemporaryDirectory() as temporary:
        home, place = Path(temporary) / "home", Path(temporary) / "collection"
        place.mkdir()
        if wait(fork(prepare, place), place):
            raise SystemExit("The collection was not prepared.")
        shutil.copytree(place, home)  # the collection knows its absolute path, so each round is at the same place
        begin = time.monotonic()
        wait(fork(run, place), place)
        seconds = time.monotonic() - begin
        whole = losses(place)
        wait(fork(ask, place), place)
        while stages.total() < args.kills:
            shutil.rmtree(place)
            shutil.copytree(home, place)
            killed, longer = -1, 1.0
            while killed:
                begin = time.monotonic()
                child = fork(run, place)
                end = begin + chance.random() * seconds * longer
                while time.monotonic() < end and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    time.sleep(0.005)
                os.kill(child, signal.SIGKILL)
                killed = wait(child, place)
                if not killed:  # other load on the machine changes
                    seconds = min(seconds, time.monotonic() - begin)
                if killed:
                    stages[stage(place)] += 1
                    longer += 0.2  # on a machine that is busier than before, it would never end
                    print(f"{stages.total()} kills, {dict(stages)}", file=sys.stderr, flush=True)
                    wait(fork(ask, place), place)
            rounds += 1
            worst = max(worst, *(abs(value - whole[key]) for key, value in losses(place).items()))
            adapter = json.loads((place / ".ragfm-adapters" / "001" / DECISION).read_text())
            print(f"{rounds} refreshes, largest difference {worst:.2g}", file=sys.stderr, flush=True)
            if worst > TOLERANCE or not adapter["adopted"]:
                raise SystemExit(f"Losses differ by {worst}, or the adapter was not adopted: {adapter['why']}")
    result = {
        **about("refreshes killed at random", ("ragfm", "torch", "peft", "llama-cpp-python")),
        "kills": stages.total(),
        "refreshes": rounds,
        "killed in": dict(stages),
        "seconds without kills": round(seconds, 2),
        "largest difference of a loss": worst,
    }
    save(result, "adapt_kills")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
