"""The shipped adapter fits the bundled model and the default prompt, and answers as trained."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ragfm import Collection, Rag, Settings
from ragfm.generation.prompt import prompt_fingerprint
from ragfm.models.adapters import GGUF, NO_ADAPTER, SHIPPED, check_adapter, read_record, shipped_adapter
from ragfm.models.model_lookup import find_model
from ragfm.samples import copy_handbook

OTHER = "When did the Beatles release Abbey Road?"


@pytest.fixture(scope="module")
def handbook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collection]:
    folder = tmp_path_factory.mktemp("handbook")
    with Collection.open(folder / ".ragfm", settings=Settings()) as collection:
        collection.sync(copy_handbook(folder))
        yield collection


def test_it_fits_the_bundled_weights_and_the_default_prompt() -> None:
    assert shipped_adapter("bundled", prompt_fingerprint()) == str(SHIPPED / GGUF)
    check_adapter(SHIPPED / GGUF, find_model("bundled", "reader"), prompt_fingerprint())
    record = read_record(SHIPPED)
    assert (record.method, record.licence) == ("lora", "CC BY-SA 4.0")
    assert record.data["examples"]["train"] > 10_000
    assert "4.0" in (SHIPPED / "README.md").read_text()
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 12 * 2**20


@pytest.mark.parametrize("reader", ["bundled", "transformers:bundled"])
def test_it_is_used_with_the_bundled_reader_only(handbook: Collection, reader: str) -> None:
    assert (Rag(handbook, reader=reader).sampling.adapter is not None) == (reader == "bundled")
    assert Rag(handbook, reader=reader, adapter=NO_ADAPTER).sampling.adapter is None


@pytest.mark.judge
@pytest.mark.slow
def test_the_adapter_gives_short_answers_and_abstains(handbook: Collection) -> None:
    trained, bare = Rag(handbook), Rag(handbook, adapter=NO_ADAPTER)
    short, long = (rag.ask("How many bedrooms are there in the staff house?") for rag in (trained, bare))
    assert "11" in short.text
    assert short.citations
    assert short.citations[0].supports
    assert len(short.text) < len(long.text)
    assert trained.ask(OTHER).abstained
