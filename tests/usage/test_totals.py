"""Sums in memory, with a clock that is passed in."""

from datetime import timedelta
from itertools import count

import pytest

from nexa_runtime.usage import totals
from nexa_runtime.usage.totals import UsageTotals
from tests.usage.records import NOON, record

MINUTE = timedelta(minutes=1)


def begun() -> UsageTotals:
    """Counts since noon and 30 s; it is an hour later now."""
    times = count()
    return UsageTotals(lambda: NOON + MINUTE * 60 * next(times))


def test_requests_are_summed_up_by_tenant_and_model() -> None:
    sums = begun()
    for fields in ({}, {"status": 404}, {"model": "other"}, {"tenant_id": "beta", "status": 503}):
        sums.put(record(**fields))
    report = sums.report()
    assert set(report.counts) == {("acme", "demo"), ("acme", "other"), ("beta", "demo")}
    counts = report.counts["acme", "demo"]
    assert (counts.requests, counts.statuses) == (2, {"2xx": 1, "4xx": 1})
    assert (counts.prompt_tokens, counts.cached_tokens, counts.completion_tokens) == (14, 4, 6)
    assert counts.total_tokens == 20
    assert set(sums.report(tenant_id="beta").counts) == {("beta", "demo")}
    assert sums.report(tenant_id="nobody").counts == {}


def test_since_a_moment_whole_minutes_count() -> None:
    sums = begun()
    for minutes in (0, 5, 10):
        sums.put(record(created_at=NOON + MINUTE * minutes))
    report = sums.report(since=NOON + MINUTE * 5 + timedelta(seconds=20))
    assert report.counts["acme", "demo"].requests == 2
    assert report.since == NOON.replace(second=0) + MINUTE * 5
    assert report.complete_since == report.started_at == NOON
    before = sums.report(since=NOON - MINUTE)
    assert (before.since, before.counts["acme", "demo"].requests) == (NOON, 3)
    assert sums.report(since=NOON + MINUTE * 11).counts == {}


def test_of_too_many_minutes_the_oldest_count_only_since_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals, "MAX_COUNTS", 4)
    sums = begun()
    for minutes in range(6):
        sums.put(record(created_at=NOON + MINUTE * minutes))
    sums.put(record(created_at=NOON))  # it was running all the time
    complete = NOON.replace(second=0) + MINUTE * 2
    assert sums.report().complete_since == complete
    assert sums.report().counts["acme", "demo"].requests == 7
    late = sums.report(since=NOON + MINUTE)
    assert (late.since, late.counts["acme", "demo"].requests) == (complete, 4)


def test_names_beyond_a_number_are_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals, "MAX_TENANTS", 2)
    monkeypatch.setattr(totals, "MAX_MODELS", 2)
    sums = begun()
    for number in range(5):
        sums.put(record(model=f"made-up-{number}"))
        sums.put(record(tenant_id=f"tenant-{number}"))
    counts = {key: one.requests for key, one in sums.report().counts.items()}
    assert counts == {
        ("acme", "made-up-0"): 1,
        ("acme", "made-up-1"): 1,
        ("acme", None): 3,
        ("tenant-0", "demo"): 1,
        (None, "demo"): 4,
    }


def test_a_clock_that_jumps_loses_nothing() -> None:
    sums = begun()
    sums.put(record(created_at=NOON - MINUTE * 600))
    sums.put(record(created_at=NOON + MINUTE * 600))
    assert sums.report().counts["acme", "demo"].requests == 2
