"""`ragfm models`."""

from __future__ import annotations

import pytest

from ragfm.models.model_card import licence_warning

FREE_LICENCES = ["apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0"]
RESTRICTIVE_LICENCES = ["cc-by-nc-4.0", "llama3.1", "gemma", "other", "mitigated"]


@pytest.mark.parametrize("licence", [*FREE_LICENCES, *RESTRICTIVE_LICENCES])
def test_licences_that_restrict_use(licence: str) -> None:
    assert (licence_warning(licence) is None) == (licence in FREE_LICENCES)
