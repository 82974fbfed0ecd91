"""Variables in addresses and options: from the environment, or from files that it names."""

from __future__ import annotations

from pathlib import Path

import pytest
from ragfm_connectors.secrets import check_no_secret, expand, hide
from support.shell import Shell

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


@pytest.mark.parametrize(
    "address",
    [
        "http://ann:c4nary/pass:w0rd@x@127.0.0.1:1/docs",
        "https://ann:c4nary/pass@dav.example.org",
        "imap://ann%40example.org:c4nary/w0rd@127.0.0.1:1",
        "postgresql://ann:c4nary/w0rd@db.lan/shop#articles",
        "https://ann:c4nary@example.org/@bob",
        "https://c4nary@x:c4nary@example.org/",
    ],
)
def test_a_password_by_value_is_refused_and_not_shown(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="contains a secret") as caught:
        check_no_secret(address)
    assert "c4nary" not in f"{caught.value}{caught.value.hint}"
    connector = {"h": "webdav", "i": "imap", "p": "sql"}[address[0]]
    (tmp_path / "ragfm.toml").write_text(f'[[sources]]\nlocation = "{address}"\nconnector = "{connector}"\n')
    shell = Shell(tmp_path)
    commands = [["ingest", address, "--connector", connector], ["ingest", address], ["sources", f"{address}x"]]
    commands += [["ingest"], ["sources", "--check"], ["sources", f"{address}x", "--check"], ["remove", address]]
    for words in commands:
        for style in ([], ["--json"]):
            done = shell(*words, *style, code=1)
            assert "c4nary" not in done.stdout + done.stderr, words


@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/@ann/posts",
        "http://localhost:8080/@ann",
        "https://example.org/a@b:c",
        "sqlite:////data/a@b.db#late",
        "https://ann:${CLOUD_PASSWORD}@example.org:8080/a",
        "s3://bucket/a@b/c",
    ],
)
def test_an_address_without_a_secret(address: str) -> None:
    check_no_secret(address)
