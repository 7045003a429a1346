"""Fixtures: what the logs write, and that what one test sets holds for it alone."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from nexa_runtime.telemetry import configure_logging


class Written:
    """What came on standard error since the last time."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def text(self) -> str:
        """As it was written."""
        return self._capsys.readouterr().err

    def lines(self) -> list[dict[str, Any]]:
        """Each line's fields."""
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Written]:
    configure_logging("INFO")
    yield Written(capsys)
    configure_logging("INFO")
