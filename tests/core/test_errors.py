from __future__ import annotations

import pytest

from ragfm.core.errors import MissingExtraError, needs_extra


def test_a_missing_module_names_the_extra_to_install() -> None:
    with pytest.raises(MissingExtraError) as caught, needs_extra("Watching", "watch"):
        import nothing_of_that_name  # type: ignore[import-not-found]  # noqa: F401
    assert str(caught.value) == (
        "Watching needs the module 'nothing_of_that_name', which is not installed. "
        "Run `pip install -e '.[watch]'` in ragfm's source folder."
    )


def test_a_library_of_another_version_names_what_it_lacks() -> None:
    message = "Watching cannot be used: cannot import name 'nothing'"
    with pytest.raises(MissingExtraError, match=message), needs_extra("Watching", "watch"):
        from json import nothing  # type: ignore[attr-defined]  # noqa: F401


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), needs_extra("Watching", "watch"):
        _ = 1 / 0
