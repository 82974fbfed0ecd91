"""BERT in OpenVINO: bf16 where the processor has it, several batches at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
from openvino import opset13 as op

from ragfm.embedders.bert import MASKED, Bert, Linear, forward
from ragfm.embedders.sorted_batches import Batch, embed_sorted

if TYPE_CHECKING:
    from ragfm.core.types import Vectors
    from ragfm.embedders.model_folder import BertFolder

__all__ = ["OpenVinoForm"]

BUDGET = 2048
"""Tokens of a batch, padding included."""
MULTIPLE = 8
"""OpenVINO prepares each new shape, so there are few."""


class OpenVinoForm:
    """The graph is made straight from the weights, so there is no conversion and no copy of the model on disk."""

    def __init__(self, folder: BertFolder, bert: Bert) -> None:
        self._dim = folder.dim
        ids, mask = op.parameter([-1, -1], np.int64), op.parameter([-1, -1], np.float32)
        model = openvino.Model([forward(_OpenVino(folder), bert, ids, mask)], [ids, mask], "bert")
        hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "bf16"}
        self._compiled = openvino.Core().compile_model(model, "CPU", hints)
        self._streams = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))

    def __call__(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """*Shape:* (len(ids), dim)."""
        return embed_sorted(ids, self._run, self._dim, budget=BUDGET, multiple=MULTIPLE)

    def _run(self, batches: Iterable[Batch]) -> Iterator[Vectors]:
        # Without callbacks: one that still ends when the model is given up waits for the interpreter's lock, which the
        # giving up holds, for ever.
        requests = [self._compiled.create_infer_request() for _ in range(self._streams)]
        running: deque[Any] = deque()
        for batch in batches:
            if len(running) == len(requests):
                yield _output(running.popleft())
            request = next(request for request in requests if request not in running)
            request.start_async(batch)
            running.append(request)
        while running:
            yield _output(running.popleft())


def _output(request: Any) -> Vectors:
    request.wait()
    vectors: Vectors = request.get_output_tensor().data.copy()
    return vectors


class _OpenVino:
    def __init__(self, folder: BertFolder) -> None:
        self._heads, self._epsilon, self._cls = folder.heads, folder.epsilon, folder.cls

    def rows(self, table: Any, ids: Any) -> Any:
        return op.gather(op.constant(table), ids, _whole(0))

    def first(self, table: Any, ids: Any) -> Any:
        tokens = op.gather(op.shape_of(ids), _whole([1]), _whole(0))
        return op.slice(op.constant(table), _whole([0]), tokens, _whole([1]), _whole([0]))

    def linear(self, x: Any, by: Linear) -> Any:
        return op.matmul(x, op.constant(by.weight), False, True) + op.constant(by.bias[None, None])

    def norm(self, x: Any, by: Linear) -> Any:
        unit = op.mvn(x, _whole([-1]), True, self._epsilon, "INSIDE_SQRT")
        return unit * op.constant(by.weight[None, None]) + op.constant(by.bias[None, None])

    def gelu(self, x: Any) -> Any:
        return op.gelu(x, "ERF")

    def attend(self, qkv: Any, mask: Any) -> Any:
        parts = op.reshape(qkv, _whole([0, 0, 3, self._heads, -1]), True)
        q, k, v = (op.transpose(op.gather(parts, _whole(part), _whole(2)), _whole([0, 2, 1, 3])) for part in range(3))
        bias = op.unsqueeze((op.constant(np.float32(1)) - mask) * op.constant(np.float32(MASKED)), _whole([1, 2]))
        out = op.scaled_dot_product_attention(q, k, v, bias)
        return op.reshape(op.transpose(out, _whole([0, 2, 1, 3])), _whole([0, 0, -1]), True)

    def pool(self, x: Any, mask: Any) -> Any:
        if self._cls:
            return op.gather(x, _whole(0), _whole(1))
        return op.reduce_sum(x * op.unsqueeze(mask, _whole(2)), _whole(1))


def _whole(value: int | Sequence[int]) -> Any:
    return op.constant(np.array(value, dtype=np.int64))
