"""The directory of tenants: what is asked, what is believed, and for how long."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping

import anyio
import pytest

from nexa_runtime.errors import (
    SourceUnavailableError,
    TenantConfigInvalidError,
    TenantConfigUnavailableError,
    TenantUnknownError,
)
from nexa_runtime.tenancy import directory as module
from nexa_runtime.tenancy.directory import (
    MAX_NEW_BURST,
    MAX_UNKNOWN,
    RETRY_S,
    STALE_S,
    UNKNOWN_S,
    TenantDirectory,
    Verdict,
    judge,
)
from nexa_runtime.tenancy.source import Secret
from nexa_runtime.tenancy.source_health import SourceHealth

FRESH_S = 60.0


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - the other side is a thread
            await anyio.sleep(0.01)


class FakeSource:
    """A source of limits whose word can be set; it counts what it is asked."""

    name = "fake"
    fresh_s = FRESH_S

    def __init__(self, tenants: Mapping[str, Mapping[str, object]]) -> None:
        self.tenants = dict(tenants)
        self.is_down = False
        self.asked: Counter[str] = Counter()
        self.gate: threading.Event | None = None
        self.has_answered = False
        self.version = 1

    def fetch(self, tenant_id: str) -> Secret | None:
        self.asked[tenant_id] += 1
        if self.gate is not None:
            self.gate.wait(20)
        if self.is_down:
            raise SourceUnavailableError("it is down")
        self.has_answered = True
        values = self.tenants.get(tenant_id)
        return None if values is None else Secret(values, str(self.version))

    def close(self) -> None:
        pass


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("age_s", "failed_s", "verdict"),
    [
        (None, None, Verdict.FETCH),
        (0.0, None, Verdict.USE),
        (FRESH_S, None, Verdict.USE),
        (FRESH_S + 1, None, Verdict.FETCH),
        (STALE_S + 1, None, Verdict.FETCH),
        (FRESH_S + 1, 0.0, Verdict.USE),
        (FRESH_S + 1, RETRY_S, Verdict.USE_AND_FETCH),
        (STALE_S, 1.0, Verdict.USE),
        (STALE_S + 1, 1.0, Verdict.REFUSE),
        (STALE_S + 1, RETRY_S, Verdict.FETCH),
        (None, 1.0, Verdict.REFUSE),
        (None, RETRY_S, Verdict.FETCH),
    ],
)
def test_the_staleness_rule(age_s: float | None, failed_s: float | None, verdict: Verdict) -> None:
    assert judge(age_s, failed_s, fresh_s=FRESH_S) is verdict


def test_a_fresh_word_is_asked_for_once() -> None:
    source, clock = FakeSource({"acme": {"NEXA_WEIGHT": "3"}}), Clock()

    async def scenario() -> None:
        directory = TenantDirectory(source, clock)
        for _ in range(5):
            assert (await directory.resolve("acme")).limits.weight == 3
        assert source.asked["acme"] == 1
        clock.now += 2 * FRESH_S
        await directory.resolve("acme")
        assert source.asked["acme"] == 2

    anyio.run(scenario)


def test_many_who_ask_at_once_cost_one_question() -> None:
    source = FakeSource({"acme": {}})
    source.gate = threading.Event()

    async def scenario() -> None:
        directory = TenantDirectory(source, Clock())
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(directory.resolve, "acme")
            await until(lambda: source.asked["acme"] > 0)
            assert source.gate is not None
            source.gate.set()
        assert source.asked["acme"] == 1

    anyio.run(scenario)


def test_one_who_gives_up_does_not_take_the_answer_from_the_others() -> None:
    source = FakeSource({"acme": {}})
    source.gate = threading.Event()

    async def scenario() -> None:
        directory = TenantDirectory(source, Clock())
        with anyio.move_on_after(0.05):
            await directory.resolve("acme")
        assert source.gate is not None
        source.gate.set()
        assert (await directory.resolve("acme")).id == "acme"
        assert source.asked["acme"] == 1

    anyio.run(scenario)


def test_an_outage_is_bridged_for_a_quarter_of_an_hour_and_no_longer() -> None:
    source, clock = FakeSource({"acme": {}}), Clock()

    async def scenario() -> None:
        directory = TenantDirectory(source, clock)
        await directory.resolve("acme")
        source.is_down = True
        clock.now += 100
        for _ in range(3):
            assert (await directory.resolve("acme")).id == "acme"
        assert source.asked["acme"] == 2
        clock.now += STALE_S
        for _ in range(3):
            with pytest.raises(TenantConfigUnavailableError):
                await directory.resolve("acme")
        assert source.asked["acme"] == 3
        source.is_down = False
        clock.now += RETRY_S
        assert (await directory.resolve("acme")).id == "acme"

    anyio.run(scenario)


def test_how_the_source_does_is_known() -> None:
    source, clock = FakeSource({"acme": {}}), Clock()

    async def scenario() -> None:
        directory = TenantDirectory(source, clock)
        assert directory.health == SourceHealth("fake", is_up=False, age_s=None, num_errors=0)
        await directory.resolve("acme")
        clock.now += 7
        assert directory.health == SourceHealth("fake", is_up=True, age_s=7, num_errors=0)
        source.is_down = True
        with pytest.raises(TenantConfigUnavailableError):
            await directory.refresh("acme")
        assert directory.health == SourceHealth("fake", is_up=False, age_s=7, num_errors=1)
        source.is_down = False
        with pytest.raises(TenantUnknownError):
            await directory.resolve("nobody")
        assert directory.health == SourceHealth("fake", is_up=True, age_s=0, num_errors=1)
        assert TenantDirectory(None).health is None

    anyio.run(scenario)


def test_in_an_outage_only_the_first_request_waits() -> None:
    source, clock = FakeSource({"acme": {}}), Clock()

    async def scenario() -> None:
        directory = TenantDirectory(source, clock)
        await directory.resolve("acme")
        source.is_down = True
        clock.now += 100
        await directory.resolve("acme")
        clock.now += RETRY_S
        source.gate = threading.Event()
        with anyio.fail_after(1):
            for _ in range(10):
                await directory.resolve("acme")
        source.gate.set()

    anyio.run(scenario)


def test_a_source_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FETCH_TIMEOUT_S", 0.1)
    source = FakeSource({"acme": {}})
    source.gate = threading.Event()

    async def scenario() -> None:
        directory = TenantDirectory(source, Clock())
        with anyio.fail_after(5), pytest.raises(TenantConfigUnavailableError):
            await directory.resolve("acme")
        assert source.gate is not None
        source.gate.set()

    anyio.run(scenario)


def test_a_deleted_tenant_is_out_as_soon_as_it_is_seen() -> None:
    source, clock = FakeSource({"acme": {}}), Clock()

    async def scenario() -> None:
        directory = TenantDirectory(source, clock)
        await directory.resolve("acme")
        del source.tenants["acme"]
        await directory.resolve("acme")
        with pytest.raises(TenantUnknownError):
            await directory.refresh("acme")
        with pytest.raises(TenantUnknownError):
            await directory.resolve("acme")
        source.is_down = True
        clock.now += UNKNOWN_S + 1
        with pytest.raises(TenantConfigUnavailableError):
            await directory.resolve("acme")

    anyio.run(scenario)


def test_a_new_version_holds_after_a_refresh_and_listeners_hear_of_it() -> None:
    source = FakeSource({"acme": {"TENANT_HARD_LIMIT_RPM": "100"}})
    heard = []

    async def scenario() -> None:
        directory = TenantDirectory(source, Clock())
        directory.on_change(lambda tenant: heard.append(tenant.limits.requests_per_minute))
        await directory.resolve("acme")
        source.tenants["acme"] = {"TENANT_HARD_LIMIT_RPM": "5"}
        assert (await directory.resolve("acme")).limits.requests_per_minute == 100
        assert (await directory.refresh("acme")).limits.requests_per_minute == 5
        assert (await directory.resolve("acme")).limits.requests_per_minute == 5
        await directory.refresh("acme")
        assert heard == [100, 5]

    anyio.run(scenario)


def test_a_refresh_asks_again_although_a_question_is_under_way() -> None:
    source = FakeSource({"acme": {"NEXA_WEIGHT": "1"}})
    source.gate = threading.Event()

    async def scenario() -> None:
        directory = TenantDirectory(source, Clock())
        async with anyio.create_task_group() as group:
            group.start_soon(directory.resolve, "acme")
            await until(lambda: source.asked["acme"] > 0)
            group.start_soon(directory.refresh, "acme")
            await anyio.sleep(0.05)
            assert source.gate is not None
            source.gate.set()
        assert source.asked["acme"] == 2

    anyio.run(scenario)


def test_garbage_never_good_is_invalid_and_after_a_good_version_changes_nothing() -> None:
    source, clock = FakeSource({"new": {"NEXA_WEIGHT": "heavy"}, "old": {"NEXA_WEIGHT": "2"}}), Clock()

    async def scenario() -> None:
        directory = TenantDirectory(source, clock)
        with pytest.raises(TenantConfigInvalidError, match="NEXA_WEIGHT") as caught:
            await directory.resolve("new")
        assert "heavy" not in str(caught.value)
        await directory.resolve("old")
        source.tenants["old"] = {"NEXA_WEIGHT": "heavy"}
        tenant = await directory.refresh("old")
        assert tenant.limits.weight == 2
        assert len(tenant.problems) == 1
        source.tenants["old"] = {"NEXA_WEIGHT": "4"}
        tenant = await directory.refresh("old")
        assert (tenant.limits.weight, tenant.problems) == (4, ())

    anyio.run(scenario)


def test_guessed_ids_cost_a_bounded_number_of_questions_and_places() -> None:
    source, clock = FakeSource({"acme": {}}), Clock()

    async def scenario() -> None:
        directory = TenantDirectory(source, clock)
        await directory.resolve("acme")
        outcomes: Counter[str] = Counter()
        for index in range(10_000):
            try:
                await directory.resolve(f"guess-{index}")
            except (TenantUnknownError, TenantConfigUnavailableError) as error:
                outcomes[type(error).__name__] += 1
        assert source.asked.total() <= MAX_NEW_BURST + 1
        assert outcomes.total() == 10_000
        assert len(directory._unknown) <= MAX_UNKNOWN
        assert len(directory._entries) == 1
        assert (await directory.resolve("acme")).id == "acme"
        clock.now += 10
        with pytest.raises(TenantUnknownError):
            await directory.resolve("guess-10001")

    anyio.run(scenario)


def test_ids_that_fail_are_not_kept_without_bound() -> None:
    source, clock = FakeSource({}), Clock()
    source.is_down = True

    async def scenario() -> None:
        directory = TenantDirectory(source, clock)
        for index in range(MAX_UNKNOWN + 500):
            clock.now += 1
            with pytest.raises(TenantConfigUnavailableError):
                await directory.resolve(f"guess-{index}")
        assert len(directory._entries) <= MAX_UNKNOWN

    anyio.run(scenario)


def test_a_source_that_crashes_revokes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    source, clock = FakeSource({"acme": {}}), Clock()

    def crash(tenant_id: str) -> Secret | None:
        raise RuntimeError("a bug")

    async def scenario() -> None:
        directory = TenantDirectory(source, clock)
        await directory.resolve("acme")
        monkeypatch.setattr(source, "fetch", crash)
        with pytest.raises(TenantConfigUnavailableError):
            await directory.refresh("acme")
        assert (await directory.resolve("acme")).id == "acme"

    anyio.run(scenario)


def test_without_a_source_everyone_is_without_limits() -> None:
    async def scenario() -> None:
        directory = TenantDirectory(None)
        assert directory.has_answered
        tenant = await directory.resolve("demo")
        assert (tenant.source, tenant.limits.requests_per_minute) == ("default", None)
        assert (await directory.refresh("demo")).id == "demo"

    anyio.run(scenario)


def test_the_probe_asks_until_there_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    source = FakeSource({})
    source.is_down = True

    async def scenario() -> None:
        directory = TenantDirectory(source)
        async with anyio.create_task_group() as group:
            group.start_soon(directory.wait_answered, "nexa-probe")
            await until(lambda: source.asked["nexa-probe"] >= 3)
            assert not directory.has_answered
            source.is_down = False
        assert directory.has_answered

    anyio.run(scenario)
