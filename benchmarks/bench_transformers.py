"""Compare the transformers reader with transformers' `generate` and with its continuous batching (`generate_batch`).

    python benchmarks/bench_transformers.py [--model NAME] [--device cuda] [--batches 1 8 32] [--tokens 128]
                                            [--rounds 3] [--processor-seconds]

All have the same weights, prompts of different lengths, greedy decoding and a fixed number of tokens to generate.
`generate` gets all prompts as one padded batch, its best case; the other two get separate requests. Continuous batching
keeps its manager, has blocks for all requests, as it would infer on a GPU, and no flash attention, which needs one. No
prompt is asked twice, and they begin differently, so no side reuses evaluated prompts. Each side runs in a process of
its own. For each batch: tokens per second, and how many of the first eight texts equal those of `generate`
with one prompt at a time. For each side: peak memory of the process, and tokens of a request after it was cancelled.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from measure import about, save
from transformers import ContinuousBatchingConfig, GenerationConfig

from ragfm.core.types import Message, Sampling
from ragfm.generation.readers.transformers_reader import TransformersReader

SIDES = ("ours", "generate", "continuous")
CONTEXT, BLOCK = 1024, 256
COMPARED = 8
WORDS = "The handbook says that employees get leave when they ask for it in time. "


class Sides:
    """The same model for all sides. Each returns the texts of `count` prompts, `tokens` long."""

    def __init__(self, name: str, device: str | None, slots: int, tokens: int) -> None:
        self.reader = TransformersReader(name, device=device, context_tokens=CONTEXT, slots=slots)
        self.engine = self.reader._engine.model
        self.engine.end_tokens = set()  # all generate the same number of tokens
        self.engine.set_adapter(None)
        self.model, self.tokenizer = self.engine._model, self.engine._tokenizer
        self.tokens, self.first = tokens, 0
        """`first` is the number of the first prompt."""
        self.config = ContinuousBatchingConfig(
            num_blocks=slots * (CONTEXT // BLOCK + 1), max_batch_tokens=512, page_size=BLOCK, auto_switch_to_flash=False
        )
        self.greedy = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1)

    def prompts(self, count: int) -> list[list[Message]]:
        return [
            [Message("user", f"{n}: " + WORDS * (1 + 3 * n % 7) + "Write about the number.")]
            for n in range(self.first, self.first + count)
        ]

    def ids(self, count: int) -> list[list[int]]:
        return [self.engine.prompt_tokens(messages) for messages in self.prompts(count)]

    def ours(self, count: int) -> list[str]:
        streams = [self.reader.stream(messages, Sampling(max_tokens=self.tokens)) for messages in self.prompts(count)]
        return ["".join(stream) for stream in streams]

    def generate(self, count: int) -> list[str]:
        return self.generated(self.ids(count))

    def generated(self, ids: list[list[int]]) -> list[str]:
        longest, pad = max(map(len, ids)), self.tokenizer.eos_token_id
        batch = torch.tensor([[pad] * (longest - len(row)) + row for row in ids], device=self.engine.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=self.engine.device)
        with torch.inference_mode():
            whole = self.model.generate(
                input_ids=batch,
                attention_mask=mask,
                max_new_tokens=self.tokens,
                min_new_tokens=self.tokens,
                do_sample=False,
                pad_token_id=pad,
            )
        return self.texts(whole[:, longest:].tolist())

    def continuous(self, count: int) -> list[str]:
        with torch.inference_mode():
            found = self.model.generate_batch(
                self.ids(count),
                generation_config=self.greedy,
                continuous_batching_config=self.config,
                persistent_manager=True,
            )
        assert len(found) == count
        assert not any(output.error for output in found.values())
        return self.texts([output.generated_tokens for output in found.values()])

    def texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return ["".join(self.engine.detokenize(iter(row))) for row in rows]

    def tokens_after_cancel(self, side: str) -> int | None:
        """Tokens of a request, while another one runs, after it was cancelled at its third token."""
        if side == "ours":
            first, second = (self.reader.stream(one, Sampling(max_tokens=self.tokens)) for one in self.prompts(2))
            for _ in range(3):
                next(first)
            first.close()
            list(second)
            return len(list(first))
        if side != "continuous":
            return None
        self.model.destroy_cached_continuous_batching_manager()
        after, count, cancelled = 0, 0, False
        ids = self.ids(2)
        with self.model.continuous_batching_context_manager(
            generation_config=self.greedy, continuous_batching_config=self.config, block=True
        ) as manager:
            names = [manager.add_request(row, streaming=True, eos_token_id=-1) for row in ids]
            while output := manager.get_result(timeout=60):
                if output.request_id == names[0]:
                    count += 1
                    after += cancelled
                    if count == 3:
                        manager.cancel_request(names[0])
                        cancelled = True
                elif output.is_finished():
                    break
        return after


def measure_side(side: str, given: argparse.Namespace) -> dict[str, Any]:
    clock: Callable[[], float] = time.process_time if given.processor_seconds else time.perf_counter
    if given.processor_seconds:
        torch.set_num_threads(1)
    sides = Sides(given.model, given.device, max(given.batches), given.tokens)
    run = getattr(sides, side)
    run(1)
    rows, texts, expected = {}, {}, {}
    for count in given.batches:
        speeds = []
        for _ in range(given.rounds):
            sides.first += 1000
            start = clock()
            texts[count] = run(count)
            speeds.append(count * given.tokens / (clock() - start))
        rows[count] = round(statistics.median(speeds), 1)
        if side == "generate":  # without padding, which changes sums
            expected[count] = []
            for ids in sides.ids(min(count, COMPARED)):
                expected[count] += sides.generated([ids])
    return {
        "tokens_per_second": rows,
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "tokens_after_cancel": sides.tokens_after_cancel(side),
        "texts": texts,
        "expected": expected,
        "device": sides.engine.device.type,
        "dtype": str(sides.engine.dtype),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--device")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processor-seconds", action="store_true", help="CPU time with one thread, for a busy machine")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--no-save", action="store_true")
    given = parser.parse_args()
    if given.side:
        print(json.dumps(measure_side(given.side, given)))
        return
    found: dict[str, dict[str, Any]] = {}
    for side in SIDES:
        done = subprocess.run(
            [sys.executable, *sys.argv, "--side", side], check=True, stdout=subprocess.PIPE, text=True
        )
        found[side] = json.loads(done.stdout.splitlines()[-1])
        print(side, found[side]["tokens_per_second"], file=sys.stderr, flush=True)
    expected = found["generate"].pop("expected")
    result = about("transformers", ("ragfm", "torch", "transformers"))
    result |= {"model": given.model, "tokens": given.tokens, "rounds": given.rounds}
    result |= {
        "clock": "CPU seconds of one thread" if given.processor_seconds else "seconds",
        "load": os.getloadavg()[0],
    }
    result |= {name: found["ours"][name] for name in ("device", "dtype")}
    for side in SIDES:
        texts = found[side].pop("texts")
        result[side] = {
            name: found[side][name] for name in ("tokens_per_second", "memory_mb", "tokens_after_cancel")
        } | {
            "equal_texts": {
                n: f"{sum(map(str.__eq__, rows, expected[n]))} of {min(len(rows), COMPARED)}"
                for n, rows in texts.items()
            }
        }
    print(json.dumps(result))
    if not given.no_save:
        save(result, f"transformers-{result['device']}")


if __name__ == "__main__":
    main()
