"""BERT in OpenVINO: fp32 for questions, bf16 for passages if the processor supports it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Importing openvino sends an event to Google Analytics unless this package is missing, from a forked process, which
# hangs forever if another thread held a lock at the fork.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino
from openvino import opset13 as op

from ragfm.core.fork import reset_in_children
from ragfm.core.own_thread import in_own_thread
from ragfm.embedders.bert import MASK_BIAS, Bert, Linear, forward
from ragfm.embedders.bert_numpy import NumpyBackend
from ragfm.embedders.model_folder import BertFolder
from ragfm.embedders.sorted_batches import Batch, BertBackend
from ragfm.models.hardware import compute_threads, has_bf16, physical_cores


class OpenVinoBackend(BertBackend):
    """The graph is built from the weights in memory, without a converted copy of the model on disk.

    For questions two threads compute one batch, since a question waits for its vector. For passages each thread
    computes its own, since threads that wait for each other lose a third of the throughput next to a busy process.

    A forked process uses numpy instead: OpenVINO waits there for threads that only the parent has, even to compile a
    model or to free one.
    """

    batch_tokens = 2048
    length_multiple = 8  # OpenVINO compiles for each new shape

    def __init__(self, folder: BertFolder, bert: Bert, *, for_passages: bool) -> None:
        self._numpy = NumpyBackend(folder, bert)
        if _is_forked():
            return
        ids, mask = op.parameter([-1, -1], np.int64), op.parameter([-1, -1], np.float32)
        model = openvino.Model([forward(_OpenVinoOperations(folder), bert, ids, mask)], [ids, mask], "bert")
        threads = streams = compute_threads()
        if not for_passages:
            threads = min(threads, physical_cores())  # hyper-threads of one core would wait for each other
            streams = max(1, threads // 2)
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if for_passages and has_bf16() else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
        }
        self._compiled = _compile(model, settings)
        self.parallel_batches = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        reset_in_children(self)

    def reset_after_fork(self) -> None:
        """Never free the parent's model in a forked process."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._compiled))

    def run(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.float32]]:
        """See `BertBackend`."""
        if _is_forked():
            yield from self._numpy.run(batches)
            return
        # No callbacks: one that runs while the model is being deleted waits for the GIL, which the deletion holds:
        # a deadlock.
        requests = [self._compiled.create_infer_request() for _ in range(self.parallel_batches)]
        running: deque[Any] = deque()
        for batch in batches:
            if len(running) == len(requests):
                yield _output(running.popleft())
            request = next(request for request in requests if request not in running)
            request.start_async(batch)
            running.append(request)
        while running:
            yield _output(running.popleft())


@in_own_thread
def _compile(model: Any, settings: Mapping[str, Any]) -> Any:
    return openvino.Core().compile_model(model, "CPU", settings)


_process = os.getpid()


def _is_forked() -> bool:
    """Whether this process was forked from one that had imported OpenVINO."""
    return os.getpid() != _process


def _output(request: Any) -> NDArray[np.float32]:
    request.wait()
    output: NDArray[np.float32] = request.get_output_tensor().data.copy()
    return output


class _OpenVinoOperations:
    def __init__(self, folder: BertFolder) -> None:
        self._heads, self._epsilon, self._cls = folder.heads, folder.epsilon, folder.cls

    def lookup(self, table: Any, ids: Any) -> Any:
        return op.gather(op.constant(table), ids, _constant(0))

    def first_rows(self, table: Any, ids: Any) -> Any:
        tokens = op.gather(op.shape_of(ids), _constant([1]), _constant(0))
        return op.slice(op.constant(table), _constant([0]), tokens, _constant([1]), _constant([0]))

    def linear(self, x: Any, layer: Linear) -> Any:
        return op.matmul(x, op.constant(layer.weight), False, True) + op.constant(layer.bias[None, None])

    def norm(self, x: Any, layer: Linear) -> Any:
        unit = op.mvn(x, _constant([-1]), True, self._epsilon, "INSIDE_SQRT")
        return unit * op.constant(layer.weight[None, None]) + op.constant(layer.bias[None, None])

    def gelu(self, x: Any) -> Any:
        return op.gelu(x, "ERF")

    def attention(self, qkv: Any, mask: Any, distances: Any) -> Any:
        parts = op.reshape(qkv, _constant([0, 0, 3, self._heads, -1]), True)
        q, k, v = (
            op.transpose(op.gather(parts, _constant(part), _constant(2)), _constant([0, 2, 1, 3])) for part in range(3)
        )
        bias = op.unsqueeze((op.constant(np.float32(1)) - mask) * op.constant(np.float32(MASK_BIAS)), _constant([1, 2]))
        if distances is not None:
            tokens = op.gather(op.shape_of(mask), _constant([1, 1]), _constant(0))
            bias = bias + op.slice(
                op.constant(distances), _constant([0, 0]), tokens, _constant([1, 1]), _constant([1, 2])
            )
        out = op.scaled_dot_product_attention(q, k, v, bias)
        return op.reshape(op.transpose(out, _constant([0, 2, 1, 3])), _constant([0, 0, -1]), True)

    def pool(self, x: Any, mask: Any) -> Any:
        if self._cls:
            return op.gather(x, _constant(0), _constant(1))
        return op.reduce_sum(x * op.unsqueeze(mask, _constant(2)), _constant(1))


def _constant(value: int | Sequence[int]) -> Any:
    return op.constant(np.array(value, dtype=np.int64))
