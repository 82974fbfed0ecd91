"""Embedders: texts to unit vectors.

`load_embedder` takes a name: `bundled`, a folder, a GGUF file, a model of the Hugging Face hub, or `PLUGIN:NAME`.

sentence_transformer    folders and models of the hub
gguf                    GGUF files, by llama.cpp
static                  model2vec
endpoint                a server
folder                  what a folder says of its model
network                 the forms that a model can take
choice                  which of them is fastest here
bert                    BERT, written once for what follows
in_numpy                BERT in numpy
in_torch                BERT in torch
in_openvino             BERT in OpenVINO
batches                 texts of like length together
spread                  where tokens stand, and whether they fit
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ragfm.core import registry
from ragfm.embedders.sentence_transformer import SentenceTransformerEmbedder

if TYPE_CHECKING:
    from ragfm.core.types import Embedder

__all__ = ["SentenceTransformerEmbedder", "load_embedder"]


def load_embedder(name: str = "bundled") -> Embedder:
    """The embedder of a name; its weights are loaded when they are first needed.

    Raises ModelNotFoundError, UnknownPluginError, or ConfigError where a plugin needs a model's name, or takes none.
    """
    return cast("Embedder", registry.make("embedders", name))
