"""Image embedders: the contract, and the vectors of the library's own models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragfm.core.errors import EmbeddingError, UnsupportedError
from ragfm.embedders import load_embedder
from ragfm.embedders.multi_vector_embedder import MultiVectorEmbedder
from ragfm.embedders.sentence_transformer import SentenceTransformerEmbedder
from ragfm.testing import check_embedder, check_image_embedder

pytest.importorskip("PIL", reason="needs ragfm[vision]")
pytestmark = pytest.mark.slow  # importing transformers takes seconds

TEXTS = ["a red chart", "what the blue picture of the page shows"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    from support import tiny_image_models

    folder = tmp_path_factory.mktemp("models")

    def model(name: str) -> Path:
        path = folder / name
        return path if path.exists() else getattr(tiny_image_models, f"tiny_{name}")(path)

    return model


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_vectors_of_clip_and_siglip_are_those_of_transformers(name: str, models: Callable[[str], Path]) -> None:
    import torch
    from support.tiny_image_models import picture, png
    from transformers import AutoModel, AutoProcessor

    path = models(name)
    embedder = SentenceTransformerEmbedder(str(path))
    check_embedder(embedder)
    check_image_embedder(embedder)
    pictures = [picture(seed, size) for seed, size in ((1, (96, 72)), (2, (40, 90)))]
    model, processor = AutoModel.from_pretrained(path).eval(), AutoProcessor.from_pretrained(path)
    padding = {"padding": "max_length", "max_length": 64} if name == "siglip" else {"padding": True}
    with torch.no_grad():
        images = model.get_image_features(**processor(images=pictures, return_tensors="pt")).pooler_output
        texts = model.get_text_features(**processor(text=TEXTS, return_tensors="pt", **padding)).pooler_output
    assert np.allclose(embedder.embed_images(list(map(png, pictures))), _unit(images), atol=1e-5)
    assert np.allclose(embedder.embed_queries(TEXTS), _unit(texts), atol=1e-5)


@pytest.mark.parametrize("name", ["colpali", "colqwen2"])
def test_matrices_and_scores_of_late_interaction_are_those_of_transformers(
    name: str, models: Callable[[str], Path]
) -> None:
    import torch
    from support.tiny_image_models import picture, png
    from transformers import AutoProcessor, ColPaliForRetrieval, ColQwen2ForRetrieval

    path = models(name)
    embedder = MultiVectorEmbedder(str(path))
    check_image_embedder(embedder)
    pictures = [picture(3), picture(4)]
    architecture: Any = {"colpali": ColPaliForRetrieval, "colqwen2": ColQwen2ForRetrieval}[name]
    model, processor = architecture.from_pretrained(path).eval(), AutoProcessor.from_pretrained(path)
    with torch.no_grad():
        expected_images = model(**processor.process_images(pictures)).embeddings
        expected_queries = [model(**processor.process_queries([text])).embeddings[0] for text in TEXTS]
    images, queries = embedder.embed_images(list(map(png, pictures))), embedder.embed_queries(TEXTS)
    for matrix, expected in zip([*images, *queries], [*expected_images, *expected_queries], strict=True):
        assert np.allclose(matrix, expected.numpy(), atol=1e-5)
    scores = processor.score_retrieval(expected_queries, list(expected_images)).numpy()
    mean = [[(query @ image.T).max(axis=1).mean() for image in images] for query in queries]
    assert np.allclose(mean, scores / [[len(query)] for query in queries], atol=1e-4)


def test_transparent_images_are_white_and_rotated_ones_upright() -> None:
    from PIL import Image
    from support.tiny_image_models import picture, png

    from ragfm.embedders.image_decoding import decode_images

    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert decode_images([png(clear)])[0].getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated
    buffer = BytesIO()
    picture(5).save(buffer, "JPEG", exif=exif)
    assert decode_images([buffer.getvalue()])[0].size == (72, 96)


def test_other_bytes_and_huge_images_are_refused() -> None:
    from PIL import Image
    from support.tiny_image_models import png

    from ragfm.embedders import image_decoding

    with pytest.raises(EmbeddingError, match="cannot be embedded"):
        image_decoding.decode_images([b"GIF89a not an image"])
    with pytest.raises(EmbeddingError, match="9000 x 9000 pixels"):
        image_decoding.decode_images([png(Image.new("1", (9_000, 9_000)))])


def test_a_model_of_texts_embeds_no_images(models: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedError, match="embeds texts only"):
        load_embedder("bundled").embed_images([b""])  # type: ignore[attr-defined]
    assert "processor" not in load_embedder("bundled").fingerprint
    with pytest.raises(UnsupportedError, match="Use multi-vector:"):
        SentenceTransformerEmbedder(str(models("colpali"))).fingerprint  # noqa: B018


def test_the_contract_depends_on_weights_and_image_processing(models: Callable[[str], Path], tmp_path: Path) -> None:
    one = models("clip")
    for name, changed in (("model.safetensors", "weights"), ("processor_config.json", "processor")):
        other = tmp_path / changed
        shutil.copytree(one, other)
        data = (other / name).read_bytes()
        (other / name).write_bytes(data[:-1] + b" " if changed == "weights" else data + b"\n")
        before, after = (SentenceTransformerEmbedder(str(path)).fingerprint for path in (one, other))
        assert {key for key in before if before[key] != after[key]} == {"model", changed}


def _unit(tensor: Any) -> Any:
    import torch

    return torch.nn.functional.normalize(tensor, dim=-1).numpy()
