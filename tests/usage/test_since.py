"""How the moment is read from which on usage is summed up."""

from datetime import UTC, datetime

import pytest

from nexa_runtime.usage.since import parse_since

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("24h", datetime(2026, 1, 30, 12, tzinfo=UTC)),
        ("90m", datetime(2026, 1, 31, 10, 30, tzinfo=UTC)),
        ("2w", datetime(2026, 1, 17, 12, tzinfo=UTC)),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T08:00:00Z", datetime(2026, 1, 31, 8, tzinfo=UTC)),
        ("2026-01-31T08:00+02:00", datetime(2026, 1, 31, 6, tzinfo=UTC)),
    ],
)
def test_since_is_a_time_or_a_duration(text: str, moment: datetime) -> None:
    assert parse_since(text, NOW) == moment


@pytest.mark.parametrize(
    "text",
    ["", "h", "-1h", "1y", "999999w", "yesterday", "1 h", "0001-01-01T00+10", "2026-13-01", "٣h"],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whoever calls it has the sentence
        parse_since(text, NOW)
