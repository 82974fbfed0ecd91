"""The period that a report covers."""

from __future__ import annotations

import pytest

from ragfm.core.types import Blob
from ragfm.parsing import parse
from ragfm.parsing.stated_period import stated_period


@pytest.mark.parametrize(
    ("text", "period"),
    [
        ("For the fiscal year ended January 28, 2023\nor", "2023-01-28"),
        ("For the Quarterly Period Ended December 31, 2022", "2022-12-31"),
        ("Three months ended 2 Sept. 2022 and year ended 30 June 2022", "2022-06-30"),
        ("the thirteen weeks ended: Jul 29 2023", "2023-07-29"),
        ("For the transition period from ____ to ____", None),
        ("The year ended well, on June 31, 2023.", None),
        ("For the year ended Smarch 3, 2023", None),
        (" " * 5_000 + "year ended June 30, 2023", None),
    ],
)
def test_the_last_day_of_the_period(text: str, period: str | None) -> None:
    assert stated_period(text) == period


def test_it_is_metadata_unless_the_source_knows_better() -> None:
    data = b"Report for the year ended June 30, 2023."
    assert parse(Blob(data), "a.txt").metadata["period"] == "2023-06-30"
    assert parse(Blob(data, metadata={"period": "2024"}), "a.txt").metadata["period"] == "2024"
    assert "period" not in parse(Blob(b"No report."), "a.txt").metadata
