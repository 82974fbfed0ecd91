"""Embedders: texts to unit vectors.

`load_embedder` takes a name: `bundled`, a folder, a GGUF file, a model of the Hugging Face hub, or `PLUGIN:NAME`.
"""

from __future__ import annotations

import re
from inspect import signature
from typing import TYPE_CHECKING, cast

from ragfm.embed.sentence_transformer import SentenceTransformerEmbedder
from ragfm.errors import ConfigError
from ragfm.registry import load_plugin, plugins

if TYPE_CHECKING:
    from ragfm.types import Embedder

__all__ = ["SentenceTransformerEmbedder", "load_embedder"]


def load_embedder(name: str = "bundled") -> Embedder:
    """The embedder of a name; its weights are loaded when they are first needed.

    Raises ModelNotFoundError, UnknownPluginError, or ConfigError where a plugin needs a model's name.
    """
    if name in plugins("embedders"):
        plugin = load_plugin("embedders", name)
        try:
            signature(plugin).bind()
        except TypeError:
            raise ConfigError(f"The embedder {name!r} needs the name of a model.", f"Say {name}:NAME.") from None
        return cast("Embedder", plugin())
    kind, colon, model = name.partition(":")
    if not colon or not re.fullmatch(r"[\w-]{2,}", kind):  # `C:\model` and `./a:b` are paths
        kind, model = "llama-cpp" if name.endswith(".gguf") else "sentence-transformers", name
    return cast("Embedder", load_plugin("embedders", kind)(model))
