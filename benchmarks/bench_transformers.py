"""Compare the transformers reader with transformers' own `generate`: tokens per second at batches of 1, 8 and 32.

    python benchmarks/bench_transformers.py [--model NAME] [--device cuda] [--batches 1 8 32] [--tokens 128]
                                            [--processor-seconds]

Both have the same weights, prompts of different lengths, greedy decoding and a fixed number of tokens to generate.
`generate` gets all prompts as one padded batch, its best case; the reader gets them as separate requests.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import about, save

from ragfm.core.types import Message, Sampling
from ragfm.generation.readers.transformers_reader import TransformersReader

ROUNDS = 3
WORDS = "The handbook says that employees get leave when they ask for it in time. "


def prompts(count: int) -> list[list[Message]]:
    return [[Message("user", WORDS * (4 + 3 * n % 13) + f"Write about the number {n}.")] for n in range(count)]


def run_reader(reader: TransformersReader, count: int, tokens: int) -> int:
    streams = [reader.stream(messages, Sampling(max_tokens=tokens)) for messages in prompts(count)]
    for stream in streams:
        for _ in stream:
            pass
    return sum(stream.usage.completion_tokens for stream in streams)


def run_generate(reader: TransformersReader, count: int, tokens: int) -> int:
    model = reader._engine.model
    texts = [model.written(messages) for messages in prompts(count)]
    tokenizer = model._tokenizer
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    model.switch(None)
    with torch.inference_mode():
        whole = model._model.generate(
            **batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
    return int((whole.shape[1] - batch.input_ids.shape[1]) * count)


def per_second(run: Callable[[], int], clock: Callable[[], float]) -> float:
    """Median of several rounds, after a warm-up round."""
    run()
    speeds = []
    for _ in range(ROUNDS):
        start = clock()
        spoken = run()
        speeds.append(spoken / (clock() - start))
    return round(statistics.median(speeds), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--device")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--processor-seconds", action="store_true", help="CPU time with one thread, for a busy machine")
    given = parser.parse_args()
    clock = time.process_time if given.processor_seconds else time.perf_counter
    if given.processor_seconds:
        torch.set_num_threads(1)
    reader = TransformersReader(given.model, device=given.device, context_tokens=1024, slots=max(given.batches))
    reader._engine.model._ends = set()  # all generate the same number of tokens
    rows: list[dict[str, Any]] = []
    for count in given.batches:
        row = {
            "batch": count,
            "ours_tokens_per_second": per_second(lambda count=count: run_reader(reader, count, given.tokens), clock),
            "generate_tokens_per_second": per_second(
                lambda count=count: run_generate(reader, count, given.tokens), clock
            ),
        }
        rows.append(row)
        print(row, flush=True)
    engine = reader._engine.model
    where = {"device": str(engine.device), "dtype": str(engine.dtype), "clock": clock.__name__}
    head = about("transformers", ("ragfm", "torch", "transformers"))
    result = {**head, "model": given.model, "tokens": given.tokens, **where, "rows": rows}
    print(json.dumps(result))
    save(result, f"transformers-{engine.device.type}")


if __name__ == "__main__":
    main()
