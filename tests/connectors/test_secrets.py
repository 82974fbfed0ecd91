"""Variables in addresses and options: from the environment, or from files that it names."""

from __future__ import annotations

from pathlib import Path

import pytest
from ragfm_connectors.secrets import expand, hide

from ragfm.core.errors import ConfigError

ADDRESS = "https://ann:${CLOUD_PASSWORD}@example.org"


def test_a_secret_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    file.write_bytes(b" p/\xc3\xa4ss \r\n")
    monkeypatch.setenv("CLOUD_PASSWORD_FILE", str(file))
    assert expand("${CLOUD_PASSWORD}", quoted=False) == " p/äss "
    assert expand(ADDRESS) == "https://ann:%20p%2F%C3%A4ss%20@example.org"
    file.write_text("the next one")  # a program that changes secrets does so at any time
    assert hide("refused: ' p/äss '", ADDRESS) == "refused: '${CLOUD_PASSWORD}'"
    monkeypatch.setenv("CLOUD_PASSWORD", "other")
    assert expand("${CLOUD_PASSWORD}") == "other"


def test_a_secret_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"CLOUD_PASSWORD of .* is not set") as caught:
        expand(ADDRESS)
    assert "CLOUD_PASSWORD_FILE" in caught.value.hint
    monkeypatch.setenv("CLOUD_PASSWORD_FILE", str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match=r"missing' of CLOUD_PASSWORD_FILE cannot be read: No such file"):
        expand(ADDRESS)
    (tmp_path / "missing").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        expand(ADDRESS)
