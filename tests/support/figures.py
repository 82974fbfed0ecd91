"""Documents with figures, for tests of what stores and shows them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from ragfm import Collection
from ragfm.chunking import chunk_document
from ragfm.core.types import Document
from ragfm.parsing import MarkdownBuilder
from ragfm.store.catalog import Source
from ragfm.store.document_rows import NewDocument
from ragfm.store.tables import text_hash
from ragfm.testing import HashingEmbedder


def picture(text: str = "", size: tuple[int, int] = (320, 120), format: str = "PNG", color: str = "navy") -> bytes:
    """An image with a frame and a text."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((4, 4, size[0] - 5, size[1] - 5), outline=color, width=4)
    draw.text((20, size[1] // 3), text, fill="black", font=ImageFont.load_default(min(size) // 4))
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def document_with_figures(uri: str, figures: Mapping[str, bytes]) -> Document:
    """A document of a page, with a paragraph, and figures by their captions."""
    builder = MarkdownBuilder()
    builder.start_page(1)
    builder.add_heading(1, f"About {uri}")
    builder.add_block("A paragraph before the figures.")
    for number, (caption, image) in enumerate(figures.items()):
        builder.add_figure(image, [caption], f"{number}.png", (0.1, number / 10, 0.9, (number + 1) / 10))
    parsed = builder.build()
    return Document(uri, parsed.text, "application/pdf", {}, parsed.marks, parsed.images)


def commit_figures(
    collection: Collection, documents: Sequence[Document], *, name: str = "figures", allow: Sequence[str] = ()
) -> None:
    """Commit documents of a source, for some groups or for all, without parsing them."""
    embedder = HashingEmbedder()
    with collection._store.writing() as catalog:
        source = catalog.save_source(Source(name, "files", name, name, allow=tuple(allow)))
        new = []
        for document in documents:
            chunks = chunk_document(document, embedder.tokenize, embedder.max_tokens)
            hashes = [text_hash(chunk.embedded_text) for chunk in chunks]
            vectors = embedder.embed_passages([chunk.embedded_text for chunk in chunks])
            catalog.add_vectors(catalog.at().contract_id, hashes, vectors)
            new.append(NewDocument(document.uri, "", document.text, "", document, chunks, hashes))
        catalog.commit(source, new, [])
