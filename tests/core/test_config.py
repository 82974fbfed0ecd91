"""Settings: file, environment, options; and nothing misspelt goes unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from ragfm.core.config import Settings, SourceSection, TagsSection, load_settings
from ragfm.core.errors import ConfigError
from ragfm.evaluation.settings_file import write_keys

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_environment_goes_over_the_file_and_options_over_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ragfm.toml").write_text('reader = "file"\nembedder = "file"\nindex = "file"\n[chunk]\nsize = 100\n')
    monkeypatch.setenv("RAGFM_READER", "environment")
    monkeypatch.setenv("RAGFM_EMBEDDER", "environment")
    monkeypatch.setenv("RAGFM_SEARCH__CANDIDATES", "20")
    settings = load_settings(tmp_path, embedder="option", reader=None)
    assert (settings.index, settings.reader, settings.embedder) == ("file", "environment", "option")
    assert (settings.chunk.size, settings.search.candidates) == (100, 20)


def test_a_file_of_windows_is_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "ragfm.toml").write_text('reader = "a.gguf"\r\n', encoding="utf-8-sig", newline="")
    assert load_settings(tmp_path).reader == "a.gguf"
    write_keys(tmp_path, {"": {"adapter": "none"}})
    assert (load_settings(tmp_path).reader, load_settings(tmp_path).adapter) == ("a.gguf", "none")


def test_models_next_to_the_file_are_found_from_every_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    for name in ("models/a.gguf", "models/mmproj.gguf", "adapters/b", "bundled", "verifier"):
        (project / name).mkdir(parents=True)
    file = project / "ragfm.toml"
    file.write_text('reader = "llama-cpp:models/a.gguf"\nadapter = "adapters/b"\n[ask]\nverifier = "verifier"\n')
    monkeypatch.chdir(tmp_path)
    settings = load_settings(Path("project"))
    assert settings.reader == f"llama-cpp:{project / 'models/a.gguf'}"
    assert (settings.adapter, settings.ask.verifier) == (str(project / "adapters/b"), str(project / "verifier"))
    file.write_text('reader = "bundled"\nadapter = "adapters/c"\nask = 3\nreader_options = 4\n')
    with pytest.raises(ConfigError, match="`reader_options`"):
        load_settings(project)
    file.write_text('reader = "openai:models"\n')
    assert load_settings(project).reader == "openai:models"
    file.write_text('reader = "bundled"\nadapter = "adapters/c"\n')
    assert (load_settings(project).reader, load_settings(project).adapter) == ("bundled", "adapters/c")


def test_names_of_judges_are_not_folders_next_to_the_file(tmp_path: Path) -> None:
    for name in ("auto", "small", "base", "none"):
        (tmp_path / name).mkdir()
        (tmp_path / "ragfm.toml").write_text(f'adapter = "base"\n[ask]\nverifier = "{name}"\n')
        assert load_settings(tmp_path).ask.verifier == name
    assert load_settings(tmp_path).adapter == str(tmp_path / "base")


def test_no_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_settings(tmp_path) == Settings()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("readers = 'x'", "there is no key `readers`"),
        ("[chunk]\nsizes = 3", "there is no key `chunk.sizes`"),
        ("[chunk]\nsize = 'big'", "`chunk.size`: .*it is 'big'"),
        ("[chunk]\nsize = 3", "`chunk.size`: .*greater than or equal to 16"),
        ("[[sources]]\nname = 'x'", "`sources.0.location`: field required"),
        ("[[tags]]\nmatch = 'x'", "`tags.0.tags`: field required"),
        ("[[tags]]\nmatch = ''\ntags = {}", "`tags.0.match`: .*at least 1 character"),
        ("[files]\nmax_mb = inf", "`files.max_mb`: input should be a finite number"),
        ("reader = ", "cannot be read"),
    ],
)
def test_errors_in_settings_name_the_file(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "ragfm.toml").write_text(content)
    with pytest.raises(ConfigError, match=message) as raised:
        load_settings(tmp_path)
    assert "ragfm.toml" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RAGFM_ASK__K", "none", r"RAGFM_ASK__K: `ask\.k`: .*it is 'none'"),
        ("ragfm_ask__kk", "3", r"ragfm_ask__kk: there is no key `ask\.kk`"),
        ("RAGFM_SOURCES", '[{"name": "x"}]', r"RAGFM_SOURCES: `sources\.0\.location`: field required"),
        ("RAGFM_PARSE__IMAGES", "page", r"`parse\.images`: .*valid boolean.* or input should be 'pages'"),
        ("RAGFM_SOURCES", "docs", "RAGFM_SOURCES: 'docs' is not JSON"),
        ("RAGFM_PARSE__PARSERS", "docx", "RAGFM_PARSE__PARSERS: 'docx' is not JSON"),
    ],
)
def test_a_wrong_environment_variable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    (tmp_path / "ragfm.toml").write_text("[ask]\nk = 3\n")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message) as raised:
        load_settings(tmp_path)
    assert "ragfm.toml" not in str(raised.value)


def test_an_empty_environment_variable_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ragfm.toml").write_text('reader = "file"\n')
    monkeypatch.setenv("RAGFM_READER", "")
    monkeypatch.setenv("RAGFM_SEARCH__WEIGHT", "")
    assert load_settings(tmp_path).reader == "file"


def test_a_byte_order_mark_is_not_content(tmp_path: Path) -> None:
    (tmp_path / "ragfm.toml").write_text('reader = "file"\n', encoding="utf-8-sig")
    assert load_settings(tmp_path).reader == "file"


def test_an_environment_variable_that_is_not_a_setting_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGFM_SOMETHING", "of another program")
    assert load_settings(tmp_path) == Settings()
    monkeypatch.setenv("RAGFM_SEARHC__K", "3")
    with pytest.raises(ConfigError, match=r"RAGFM_SEARHC__K: there is no key `searhc\.k`"):
        load_settings(tmp_path)


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if name in ("sources", "tags"):
            section = SourceSection if name == "sources" else TagsSection
            keys += [f"{name}.{key}" for key in section.model_fields]
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += _keys(kind, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


def test_every_key_is_documented() -> None:
    documented = DOCS.read_text(encoding="utf-8")
    assert [key for key in _keys(Settings) if f"`{key}`" not in documented] == []
