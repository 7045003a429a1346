"""The scheduler, driven by hand: no model, no threads, no clock."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexa_runtime.engine.budget import FAR_TOKENS, MIN_PREFILL_TOKENS, PendingPrompt, PrefillBudget
from nexa_runtime.engine.fair_queue import Accounts
from nexa_runtime.engine.host_cache import HostCache
from nexa_runtime.engine.kv_cache import Holding, KvCache, Reuse
from nexa_runtime.engine.padding import Padding
from nexa_runtime.engine.scheduler import Scheduler
from nexa_runtime.engine.sequence import (
    Advance,
    Chunk,
    FinishReason,
    KvOperation,
    Reload,
    Sequence,
    StepPlan,
    StepResult,
    TenantShare,
)
from nexa_runtime.errors import DecodeError
from nexa_runtime.lora import NO_ADAPTERS, AdapterSet
from tests.engine.fakes import END, FakeRunner

CONSTRAINED = frozenset(["c"])
"""Tenants whose answers have forced tokens."""


def make_sequence(
    key: int,
    num_prompt: int = 4,
    *,
    max_new: int = 8,
    tenant: str = "demo",
    max_slots: int | None = None,
    may_end: bool = False,
) -> Sequence:
    prompt = np.arange(key * 1000 + 1, key * 1000 + 1 + num_prompt, dtype=np.int32)
    return Sequence(
        key,
        prompt,
        max_new_tokens=max_new,
        share=TenantShare(tenant, max_slots=max_slots),
        cache_namespace=tenant,
        end_tokens=frozenset([END] if may_end else []),
    )


def make_scheduler(*, slots: int = 2, step_tokens: int = 64, num_cells: int = 1000) -> Scheduler:
    cache = KvCache(num_ids=2 * slots, num_cells=num_cells)
    return Scheduler(slots=slots, step_tokens=step_tokens, kv_cache=cache, accounts=Accounts())


def drain(scheduler: Scheduler, runner: FakeRunner) -> list[Advance]:
    advances: list[Advance] = []
    while (plan := scheduler.schedule(0.0)) is not None:
        advances += scheduler.commit(plan, runner.execute(plan))
        scheduler.check_integrity()
    return advances


def alone(sequence: Sequence) -> list[int]:
    """The tokens of a sequence that has the engine for itself."""
    copy = Sequence(
        sequence.key,
        sequence.tokens(0, sequence.num_prompt).copy(),
        max_new_tokens=sequence.max_new_tokens,
        share=sequence.share,
        cache_namespace=sequence.cache_namespace,
        adapters=sequence.adapters,
        end_tokens=sequence.end_tokens,
    )
    scheduler = make_scheduler(slots=1, num_cells=10_000)
    scheduler.add(copy, 0.0)
    drain(scheduler, FakeRunner(constrained=CONSTRAINED))
    return new_tokens(copy)


def new_tokens(sequence: Sequence) -> list[int]:
    return [int(token) for token in sequence.tokens(sequence.num_prompt, sequence.num_new)]


def test_nothing_to_do_is_no_plan() -> None:
    assert make_scheduler().schedule(0.0) is None


def test_a_prompt_alone_takes_the_whole_step() -> None:
    scheduler = make_scheduler(step_tokens=64)
    scheduler.add(make_sequence(1, 100), 0.0)
    plan = scheduler.schedule(0.0)
    assert plan is not None
    (chunk,) = plan.chunks
    assert (chunk.start, chunk.count, chunk.wants_token) == (0, 64, False)
    scheduler.commit(plan, FakeRunner().execute(plan))
    plan = scheduler.schedule(0.0)
    assert plan is not None
    (chunk,) = plan.chunks
    assert (chunk.start, chunk.count, chunk.wants_token) == (64, 36, True)


def test_decode_rows_ride_first_and_prompts_get_the_budget() -> None:
    scheduler, runner = make_scheduler(step_tokens=512), FakeRunner()
    talking, arriving = make_sequence(3), make_sequence(2, 500)
    scheduler.add(talking, 0.0)
    plan = scheduler.schedule(0.0)
    assert plan is not None
    scheduler.commit(plan, runner.execute(plan))
    scheduler.add(arriving, 0.0)
    plan = scheduler.schedule(0.0)
    assert plan is not None
    assert [(chunk.sequence.key, chunk.count) for chunk in plan.chunks] == [(3, 1), (2, MIN_PREFILL_TOKENS)]
    assert plan.is_mixed


def test_slots_bound_the_running_set_and_free_ones_go_to_the_next() -> None:
    scheduler, runner = make_scheduler(slots=2), FakeRunner()
    for key in range(1, 6):
        scheduler.add(make_sequence(key, max_new=1), 0.0)
    seen = []
    while (plan := scheduler.schedule(0.0)) is not None:
        seen.append([chunk.sequence.key for chunk in plan.chunks])
        scheduler.commit(plan, runner.execute(plan))
        scheduler.check_integrity()
    assert [keys for keys in seen if keys] == [[1, 2], [3, 4], [5]]


def test_a_tenants_slots_are_capped() -> None:
    scheduler = make_scheduler(slots=4)
    for key in range(1, 4):
        scheduler.add(make_sequence(key, tenant="capped", max_slots=1), 0.0)
    scheduler.add(make_sequence(9, tenant="other"), 0.0)
    plan = scheduler.schedule(0.0)
    assert plan is not None
    assert sorted(chunk.sequence.key for chunk in plan.chunks) == [1, 9]


def test_one_that_does_not_fit_waits_and_holds_its_place() -> None:
    scheduler, runner = make_scheduler(slots=3, num_cells=100), FakeRunner()
    scheduler.add(make_sequence(3, 50, max_new=11), 0.0)
    scheduler.add(make_sequence(2, 60, max_new=11), 0.0)
    scheduler.add(make_sequence(1, 5, max_new=2), 0.0)
    plan = scheduler.schedule(0.0)
    assert plan is not None
    assert [chunk.sequence.key for chunk in plan.chunks] == [3]
    scheduler.commit(plan, runner.execute(plan))
    finished = [advance.sequence.key for advance in drain(scheduler, runner) if advance.finish_reason]
    assert sorted(finished) == [1, 2, 3]


def test_a_sequence_larger_than_the_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="cells"):
        make_scheduler(num_cells=10).add(make_sequence(1, 20), 0.0)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_abort_ends_a_sequence_at_any_moment(steps: int) -> None:
    scheduler, runner = make_scheduler(slots=1, step_tokens=32), FakeRunner()
    for key in (3, 2):
        scheduler.add(make_sequence(key, 80), 0.0)
    for _ in range(steps):
        plan = scheduler.schedule(0.0)
        assert plan is not None
        scheduler.commit(plan, runner.execute(plan))
    for key in (2, 3):
        sequence = scheduler.abort(key)
        assert sequence is not None
        assert sequence.finish_reason is FinishReason.ABORT
        scheduler.check_integrity()
    assert scheduler.abort(2) is None
    drain(scheduler, runner)
    stats = scheduler.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_used_cells == runner.num_used()


class ForcingRunner(FakeRunner):
    """Each token of an answer brings ten that must follow it; nothing may follow 44 of them, if it ends."""

    may_end = True

    def execute(self, plan: StepPlan, failed: dict[int, Exception] | None = None) -> StepResult:
        result = super().execute(plan, failed)
        tokens = {key: (7, *range(100, 110)) for key in result.tokens}
        done = [one.sequence.key for one in plan.chunks if self.may_end and one.sequence.num_new >= 33]
        return replace(result, tokens=tokens, complete=frozenset(done))


def test_forced_tokens_are_computed_together_and_as_decode_rows() -> None:
    scheduler, runner = make_scheduler(slots=2), ForcingRunner()
    sequences = [make_sequence(key, 4, max_new=100) for key in (1, 2)]
    for sequence in sequences:
        scheduler.add(sequence, 0.0)
    seen = shapes(scheduler, runner, 4)
    assert seen == [(0, 8), (22, 0), (22, 0), (22, 0)]
    assert [one.finish_reason for one in sequences] == [FinishReason.STOP] * 2
    assert [one.num_new for one in sequences] == [44, 44]
    scheduler.check_integrity()


def test_an_answer_ends_in_the_midst_of_forced_tokens_where_its_cap_is() -> None:
    scheduler, runner = make_scheduler(slots=1), ForcingRunner()
    sequence = make_sequence(1, 4, max_new=15)
    scheduler.add(sequence, 0.0)
    advances = drain(scheduler, runner)
    assert [len(one.tokens) for one in advances] == [11, 4]
    assert sequence.finish_reason is FinishReason.LENGTH


def test_forced_tokens_of_many_answers_stay_under_a_tile_and_none_waits() -> None:
    cache = KvCache(num_ids=16, num_cells=20_000)
    scheduler = Scheduler(slots=8, step_tokens=512, kv_cache=cache, accounts=Accounts(), tile_rows=64)
    runner = ForcingRunner()
    runner.may_end = False
    for key in range(1, 9):
        scheduler.add(make_sequence(key, 2, max_new=300), 0.0)
    shapes(scheduler, runner, 1)
    for _ in range(20):
        plan = scheduler.schedule(0.0)
        assert plan is not None
        assert len(plan.chunks) == 8
        assert plan.num_rows < 64
        scheduler.commit(plan, runner.execute(plan))
        scheduler.check_integrity()


def test_a_failed_sequence_ends_alone() -> None:
    scheduler, runner = make_scheduler(), FakeRunner()
    good, bad = make_sequence(3), make_sequence(2)
    scheduler.add(good, 0.0)
    scheduler.add(bad, 0.0)
    plan = scheduler.schedule(0.0)
    assert plan is not None
    error = DecodeError("made up")
    advances = scheduler.commit(plan, runner.execute(plan, {2: error}))
    assert [(one.sequence.key, one.error) for one in advances if one.error] == [(2, error)]
    drain(scheduler, runner)
    assert new_tokens(good) == alone(good)


def test_work_is_charged_to_the_tenant_that_caused_it() -> None:
    scheduler, runner = make_scheduler(slots=1), FakeRunner()
    scheduler.add(make_sequence(3, 60, max_new=1, tenant="big"), 0.0)
    scheduler.add(make_sequence(4, 60, max_new=1, tenant="big"), 0.0)
    scheduler.add(make_sequence(5, 5, max_new=1, tenant="small"), 0.0)
    order = [one.sequence.share.tenant_id for one in drain(scheduler, runner) if one.finish_reason]
    assert order == ["big", "small", "big"]


def test_the_budget_learns_what_prompts_cost() -> None:
    budget = PrefillBudget(max_tokens=512)
    assert budget.mixed(1).wanted == MIN_PREFILL_TOKENS
    sequence = make_sequence(1, 400)
    prefill = StepPlan((Chunk(sequence, 0, 320, False, False),), ())
    decode = StepPlan((Chunk(sequence, 320, 1, True, True),), ())
    for _ in range(20):
        budget.observe(prefill, 0.320)
        budget.observe(decode, 0.100)
    assert budget.mixed(1).wanted == 96
    with_target = PrefillBudget(max_tokens=512, target_s=0.300)
    for _ in range(20):
        with_target.observe(prefill, 0.320)
        with_target.observe(decode, 0.100)
    assert with_target.mixed(1).wanted == 192
    for _ in range(40):
        budget.observe(decode, 0.005)
    assert budget.mixed(1).wanted == MIN_PREFILL_TOKENS


SHARES = {
    "a": TenantShare("a", weight=3.0, guaranteed_slots=2),
    "b": TenantShare("b", cache_floor_cells=20, max_slots=2),
    "c": TenantShare("c", weight=0.5, guaranteed_slots=0, cache_floor_cells=60),
}


ADAPTERS: tuple[AdapterSet, ...] = ((), (("a", 1.0),), (("a", 0.5), ("b", 2.0)))


@dataclass(frozen=True)
class Asked:
    """One request of a random schedule. ``begin``: which shared beginning, ``num_shared`` of it."""

    begin: int
    num_shared: int
    num_own: int
    max_new: int
    tenant: str
    priority: int
    arrives_at: int
    aborted_at: int | None
    adapters: AdapterSet

    def sequence(self, key: int) -> Sequence:
        return shared_sequence(
            key,
            self.begin,
            self.num_shared,
            self.num_own,
            self.max_new,
            self.tenant,
            self.priority,
            self.adapters,
        )


requests = st.lists(
    st.builds(
        Asked,
        begin=st.integers(0, 3),
        num_shared=st.integers(0, 60),
        num_own=st.integers(1, 30),
        max_new=st.one_of(st.integers(1, 12), st.integers(100, 200)),
        tenant=st.sampled_from(sorted(SHARES)),
        priority=st.integers(0, 1),
        arrives_at=st.integers(0, 12),
        aborted_at=st.one_of(st.none(), st.integers(0, 20)),
        adapters=st.sampled_from(ADAPTERS),
    ),
    min_size=1,
    max_size=14,
)

faults = st.dictionaries(
    st.integers(0, 40),
    st.tuples(st.sampled_from(["full", "lost", "failed", "unreadable"]), st.integers(0, 9)),
    max_size=5,
)
"""Step → what goes wrong, and for which of its chunks."""


def shared_sequence(
    key: int,
    begin: int,
    num_shared: int,
    num_own: int,
    max_new: int,
    tenant: str,
    priority: int = 0,
    adapters: AdapterSet = NO_ADAPTERS,
) -> Sequence:
    prompt = [*range(begin * 100 + 1, begin * 100 + 1 + num_shared), *range(key * 1000, key * 1000 + num_own)]
    return Sequence(
        key,
        np.array(prompt, dtype=np.int32),
        max_new_tokens=max_new,
        share=SHARES[tenant],
        cache_namespace=tenant,
        adapters=adapters,
        end_tokens=frozenset([END]),
        priority=priority,
    )


def injected(fault: tuple[str, int] | None, plan: StepPlan, runner: FakeRunner) -> StepResult:
    """The step's result, or what the runner reports when llama.cpp fails in one of its ways."""
    if fault is None or not plan.chunks:
        return runner.execute(plan)
    kind, at = fault
    if kind == "full":
        runner.apply(plan)
        return StepResult(0.01, {}, {}, is_pool_full=True)
    result = runner.execute(plan)
    sequence = plan.chunks[at % len(plan.chunks)].sequence
    if kind == "unreadable":
        reload = next((one for one in plan.operations if isinstance(one, Reload)), None)
        chunk = next(
            (one for one in plan.chunks if reload and one.sequence.sequence_id == reload.sequence_id), None
        )
        if reload is None or chunk is None:
            return result
        runner.cells[reload.sequence_id] = []
        return replace(result, lost=frozenset([chunk.sequence.key]), unreadable=frozenset([reload.block]))
    if kind == "failed":
        return replace(result, failed={sequence.key: DecodeError("made up")})
    assert sequence.sequence_id is not None
    runner.cells[sequence.sequence_id] = []
    return replace(result, lost=frozenset([sequence.key]))


class WatchedCache(KvCache):
    """Checks, whenever a resident is dropped, that no floor is broken without need: what it promises may lie
    in host memory too.
    """

    scheduler: Scheduler
    requester: str | None = None

    def evictable(self, requester: TenantShare, *, breaks_floors: bool = False) -> list[Holding]:
        self.requester = requester.tenant_id
        return super().evictable(requester, breaks_floors=breaks_floors)

    def drop(self, holding: Holding) -> list[KvOperation]:
        share = holding.sequence.share
        if holding.is_resident and share.tenant_id != self.requester and self.has_free_id:
            is_at_floor = self.tenant_cells()[share.tenant_id] <= share.cache_floor_cells
            holders = [one for one in self.scheduler._slots.running if one.sequence_id is not None]
            is_kept = self.scheduler._host.match(holding.sequence).num_tokens >= holding.num_cells - 1
            assert not is_at_floor or len(holders) <= 1 or is_kept
        return super().drop(holding)


@pytest.mark.parametrize("reuse", list(Reuse))
@settings(max_examples=350, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests,
    st.integers(1, 4),
    st.integers(36, 80),
    st.integers(290, 500),
    faults,
    st.sampled_from([0, 100, 400]),
    st.one_of(st.none(), st.integers(0, 100)),
    st.sampled_from([None, 16]),
)
def test_random_schedules_lose_nothing(
    monkeypatch: pytest.MonkeyPatch,
    reuse: Reuse,
    asked: list[Asked],
    slots: int,
    step_tokens: int,
    num_cells: int,
    fault_at: dict[int, tuple[str, int]],
    num_host_tokens: int,
    max_warm_cells: int | None,
    tile_rows: int | None,
) -> None:
    monkeypatch.setattr("nexa_runtime.engine.host_cache.BLOCK_TOKENS", 16)
    monkeypatch.setattr("nexa_runtime.engine.budget.FAR_TOKENS", 24)
    num_ids = slots if reuse is Reuse.OWN_PREFIX else 2 * slots
    cache = WatchedCache(num_ids=num_ids, num_cells=num_cells, reuse=reuse)
    host_cache = HostCache(max_bytes=10 * num_host_tokens, cell_bytes=10)
    scheduler = Scheduler(
        slots=slots,
        step_tokens=step_tokens,
        kv_cache=cache,
        accounts=Accounts(),
        tile_rows=tile_rows,
        host_cache=host_cache,
        max_warm_cells=max_warm_cells,
    )
    cache.scheduler = scheduler
    runner = FakeRunner(num_cells, reuse, constrained=CONSTRAINED)
    sequences = [one.sequence(key) for key, one in enumerate(asked, start=1)]
    num_full = sum(kind == "full" for kind, _ in fault_at.values())
    num_empty = 0
    for step in range(20_000):
        for sequence, one in zip(sequences, asked, strict=True):
            if one.arrives_at == step:
                scheduler.add(sequence, float(step))
            if one.aborted_at == step:
                scheduler.abort(sequence.key)
        plan = scheduler.schedule(float(step))
        if plan is None and step > 20:
            break
        if plan is not None:
            assert plan.num_rows <= step_tokens
            # All whose turn it is may have given way to the others of the set, or to another set; these are
            # next.
            num_empty = 0 if plan.chunks or not scheduler._slots.running else num_empty + 1
            assert num_empty <= len({one.adapters for one in scheduler._alive.values()})
            scheduler.commit(plan, injected(fault_at.get(step), plan, runner))
            scheduler.check_integrity()
    for sequence, one in zip(sequences, asked, strict=True):
        reason = sequence.finish_reason
        assert reason is not None or (one.aborted_at is not None and one.aborted_at < one.arrives_at)
        if reason is FinishReason.STOP or (reason is FinishReason.LENGTH and num_full < 2):
            assert new_tokens(sequence) == alone(sequence)
    stats = scheduler.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_used_cells == runner.num_used()
    assert host_cache.num_bytes == 10 * sum(len(tokens) for _, tokens in runner.saved.values())


def test_a_step_that_only_frees_cells_teaches_the_budget_nothing() -> None:
    scheduler, runner = make_scheduler(slots=2), FakeRunner()
    scheduler._budget.observe(StepPlan((Chunk(make_sequence(1, 9), 8, 1, True, True),), ()), 0.1)
    before = scheduler._budget._decode_step_s
    scheduler.add(make_sequence(2, 9, max_new=9), 0.0)
    plan = scheduler.schedule(0.0)
    assert plan is not None
    scheduler.commit(plan, runner.execute(plan))
    sequence = plan.chunks[0].sequence
    scheduler.finish(sequence, FinishReason.ERROR)
    plan = scheduler.schedule(0.0)
    assert plan is not None
    assert not plan.chunks
    scheduler.commit(plan, StepResult(1e-6, {}, {}))
    assert scheduler._budget._decode_step_s == before


def test_guarantees_that_memory_cannot_keep_together_do_not_take_turns_for_ever() -> None:
    """Two tenants that have paid alike; each has one that is too large for the other's, and a small one."""
    scheduler, runner = make_scheduler(slots=3, num_cells=300), FakeRunner()
    sequences = [
        make_sequence(key, num_prompt, tenant=tenant)
        for key, (num_prompt, tenant) in enumerate([(200, "a"), (200, "b"), (4, "a"), (4, "b")], start=1)
    ]
    for sequence in sequences:
        scheduler.add(sequence, 0.0)
    plan = scheduler.schedule(0.0)
    assert plan is not None
    assert scheduler._slots.running == [sequences[0], sequences[2]]
    scheduler.commit(plan, runner.execute(plan))
    drain(scheduler, runner)
    assert [new_tokens(one) for one in sequences] == [alone(one) for one in sequences]


def test_one_large_request_gets_in_beside_a_tenant_that_never_pauses() -> None:
    scheduler, runner = make_scheduler(slots=4, num_cells=300), FakeRunner()
    large = make_sequence(999, 250, tenant="quiet", max_new=10)
    keys = iter(range(1, 900))

    def refill() -> None:
        while scheduler.stats().num_waiting < 3:
            scheduler.add(make_sequence(next(keys), 40, tenant="busy", max_new=20 + next(keys) % 20), 0.0)

    for step in range(400):
        refill()
        if step == 20:
            scheduler.add(large, 0.0)
        plan = scheduler.schedule(0.0)
        assert plan is not None
        scheduler.commit(plan, runner.execute(plan))
        if large.finish_reason is not None:
            break
    assert large.finish_reason is FinishReason.LENGTH


def test_what_a_newcomer_goes_on_from_stays_in_its_cells() -> None:
    scheduler = Scheduler(
        slots=1,
        step_tokens=64,
        kv_cache=KvCache(num_ids=4, num_cells=1000),
        accounts=Accounts(),
        host_cache=HostCache(max_bytes=10**6, cell_bytes=10),
        max_warm_cells=0,
    )
    runner = FakeRunner(1000)
    for key in (1, 2, 3):
        scheduler.add(shared_sequence(key, 1, 60, 5, 2, "a"), 0.0)
    operations: list[KvOperation] = []
    while (plan := scheduler.schedule(0.0)) is not None:
        operations += plan.operations
        scheduler.commit(plan, runner.execute(plan))
    assert not any(isinstance(one, Reload) for one in operations)
    assert scheduler.stats().num_used_cells == 0  # once nobody waits for it


def test_a_prefix_is_kept_when_ids_run_out() -> None:
    scheduler, runner = make_scheduler(slots=1, num_cells=2000), FakeRunner()
    cached = []
    for key, begin in enumerate([1, 2, 1, 1, 1], start=1):
        sequence = shared_sequence(key, begin, 60, 5, 2, "a")
        scheduler.add(sequence, 0.0)
        drain(scheduler, runner)
        cached.append(sequence.num_cached)
    assert cached == [0, 0, 60, 60, 60]


def test_no_room_although_the_books_say_so_is_tried_with_fewer_rows_and_then_ends_one() -> None:
    scheduler, runner = make_scheduler(slots=2), FakeRunner()
    sequence = make_sequence(1, 40)
    scheduler.add(sequence, 0.0)
    rows = []
    while (plan := scheduler.schedule(0.0)) is not None and plan.chunks:
        rows.append(plan.num_rows)
        runner.apply(plan)
        advances = scheduler.commit(plan, StepResult(0.01, {}, {}, is_pool_full=True))
        scheduler.check_integrity()
    assert rows == [40, 20, 10, 5, 2, 1]
    assert [one.finish_reason for one in advances] == [FinishReason.LENGTH]

    other = make_sequence(2, 40)
    scheduler.add(other, 0.0)
    plan = scheduler.schedule(0.0)
    assert plan is not None
    runner.apply(plan)
    scheduler.commit(plan, StepResult(0.01, {}, {}, is_pool_full=True))
    drain(scheduler, runner)
    assert new_tokens(other) == alone(other)


def taught(scheduler: Scheduler, *, token_s: float) -> None:
    """Let the budget believe that a prompt token takes so long."""
    sequence = make_sequence(999, 400)
    scheduler._budget.observe(StepPlan((Chunk(sequence, 0, 100, False, False),), ()), 100 * token_s)


def shapes(scheduler: Scheduler, runner: FakeRunner, count: int) -> list[tuple[int, int]]:
    """Rows of answers and of prompts in the next steps."""
    seen = []
    for _ in range(count):
        plan = scheduler.schedule(0.0)
        assert plan is not None
        seen.append((plan.num_decode_rows, plan.num_rows - plan.num_decode_rows))
        result = runner.execute(plan)
        scheduler.commit(plan, replace(result, elapsed_s=0.005 * plan.num_rows))
    return seen


def make_tiled(
    slots: int, *, answers: int, itl_target_s: float | None = None
) -> tuple[Scheduler, FakeRunner]:
    """A processor's scheduler, with so many answers running."""
    cache = KvCache(num_ids=2 * slots, num_cells=20_000)
    scheduler = Scheduler(
        slots=slots,
        step_tokens=512,
        kv_cache=cache,
        accounts=Accounts(),
        tile_rows=64,
        itl_target_s=itl_target_s,
    )
    for key in range(1, answers + 1):
        scheduler.add(make_sequence(key, 8, max_new=1000), 0.0)
    runner = FakeRunner(is_thorough=False)
    while scheduler._slots.num_waiting or not all(one.is_decoding for one in scheduler._slots.running):
        shapes(scheduler, runner, 1)
    taught(scheduler, token_s=0.005)
    return scheduler, runner


def test_many_answers_and_a_prompt_take_turns() -> None:
    scheduler, runner = make_tiled(8, answers=7)
    scheduler.add(make_sequence(20, 300), 0.0)
    seen = shapes(scheduler, runner, 7)
    assert seen == [(7, 0), (0, 192), (7, 0), (0, 108), (8, 0), (8, 0), (8, 0)]


def paddings(scheduler: Scheduler, count: int, *, padded_s: float, plain_s: float = 0.1) -> list[int]:
    """Rows of padding in the next steps, which are of answers alone and take so long."""
    runner = FakeRunner(scheduler._kv.num_cells, scheduler._kv._reuse, is_thorough=False)
    for sequence in scheduler._slots.running:
        assert sequence.sequence_id is not None
        runner.cells[sequence.sequence_id] = [(at, (0, NO_ADAPTERS)) for at in range(sequence.num_computed)]
    seen = []
    for _ in range(count):
        plan = scheduler.schedule(0.0)
        assert plan is not None
        assert plan.num_rows == plan.num_decode_rows == len(plan.chunks)
        seen.append(plan.num_padding)
        elapsed_s = padded_s if plan.num_padding else plain_s
        scheduler.commit(plan, replace(runner.execute(plan), elapsed_s=elapsed_s))
    return seen


@pytest.mark.parametrize(("answers", "padding"), [(5, 3), (6, 2), (7, 1), (11, 1), (59, 1), (60, 0), (58, 2)])
def test_answers_are_filled_up_to_fours_where_that_was_faster(answers: int, padding: int) -> None:
    scheduler, _ = make_tiled(64, answers=answers)
    assert paddings(scheduler, 12, padded_s=0.09) == [0, padding, padding, 0] * 2 + [padding] * 4


def test_answers_are_not_filled_up_where_that_was_no_faster() -> None:
    scheduler, _ = make_tiled(8, answers=7)
    assert paddings(scheduler, 12, padded_s=0.1) == [0, 1, 1, 0] * 2 + [0] * 4


@pytest.mark.parametrize("answers", [1, 2, 3, 4, 8, 61, 62, 63])
def test_few_answers_and_those_that_would_fill_a_tile_are_never_filled_up(answers: int) -> None:
    scheduler, _ = make_tiled(64, answers=answers)
    assert paddings(scheduler, 12, padded_s=0.01) == [0] * 12


def test_one_slow_step_does_not_decide_whether_answers_are_filled_up() -> None:
    scheduler, _ = make_tiled(8, answers=7)
    assert paddings(scheduler, 2, padded_s=5.0) == [0, 1]
    assert paddings(scheduler, 8, padded_s=0.09) == [1, 0, 0, 1, 1, 0, 1, 1]


def test_whether_answers_are_filled_up_is_tried_again() -> None:
    scheduler, _ = make_tiled(8, answers=7)
    assert paddings(scheduler, 512, padded_s=0.09)[-1] == 1
    assert paddings(scheduler, 10, padded_s=0.11) == [0, 1, 1, 0] * 2 + [0] * 2


def test_a_step_that_could_not_be_filled_up_says_nothing() -> None:
    padding = Padding(512, 64)
    for _ in range(20):
        padding.rows(7)
        padding.observe(7, 0.1, is_padded=False)
    assert padding.rows(7) == 1
    for is_padded in (True, True, False, False, True, True, False):
        assert (padding.rows(7) == 1) == is_padded
        padding.observe(7, 0.2 if is_padded else 0.1, is_padded=is_padded)
    assert padding.rows(7) == 0


@pytest.mark.parametrize(
    ("num_cells", "reuse", "tile_rows", "is_padded"),
    [
        (1000, Reuse.ANY_PREFIX, 64, True),
        (1000, Reuse.ANY_PREFIX, None, False),
        (1000, Reuse.OWN_PREFIX, 64, False),
        (1000, Reuse.WHOLE, 64, False),
        (7 * 12 + 1, Reuse.ANY_PREFIX, 64, True),
        (7 * 12, Reuse.ANY_PREFIX, 64, False),
    ],
)
def test_there_is_no_padding_on_a_gpu_without_sharing_or_without_a_free_cell(
    num_cells: int, reuse: Reuse, tile_rows: int | None, *, is_padded: bool
) -> None:
    cache = KvCache(num_ids=16, num_cells=num_cells, reuse=reuse)
    scheduler = Scheduler(slots=8, step_tokens=512, kv_cache=cache, accounts=Accounts(), tile_rows=tile_rows)
    for key in range(7):
        scheduler.add(make_sequence(key, 10, max_new=3), 0.0)
    shapes(scheduler, FakeRunner(num_cells, reuse), 1)
    assert paddings(scheduler, 2, padded_s=0.09) == [0, int(is_padded)]


def test_a_step_with_more_than_a_row_for_each_is_not_filled_up() -> None:
    scheduler, runner = make_tiled(8, answers=6)
    scheduler.add(make_sequence(20, 16), 0.0)
    plans = []
    for _ in range(20):
        plan = scheduler.schedule(0.0)
        assert plan is not None
        plans.append(plan)
        scheduler.commit(plan, runner.execute(plan))
    assert any(plan.is_mixed for plan in plans)
    assert any(plan.num_padding for plan in plans)
    assert all(not plan.num_padding or plan.num_rows == len(plan.chunks) for plan in plans)


def test_one_answer_and_many_prompts_take_turns() -> None:
    scheduler, runner = make_tiled(8, answers=1)
    for key in range(20, 24):
        scheduler.add(make_sequence(key, 400), 0.0)
    assert shapes(scheduler, runner, 5) == [(1, 0), (0, 192), (1, 0), (0, 192), (1, 0)]


def test_answers_that_would_fill_a_tile_take_turns() -> None:
    scheduler, runner = make_tiled(64, answers=64)
    before = [one.num_new for one in scheduler._slots.running]
    assert shapes(scheduler, runner, 64) == [(63, 0)] * 64
    assert [one.num_new for one in scheduler._slots.running] == [num_new + 63 for num_new in before]


def test_a_short_prompt_has_a_step_of_its_own_where_answers_nearly_fill_a_tile() -> None:
    scheduler, runner = make_tiled(64, answers=60)
    scheduler.add(make_sequence(70, 16), 0.0)
    assert shapes(scheduler, runner, 3) == [(60, 0), (0, 16), (61, 0)]


def test_short_prompts_do_not_wait_for_a_step_of_long_ones() -> None:
    scheduler, runner = make_tiled(8, answers=5)
    scheduler.add(make_sequence(20, 900), 0.0)
    assert shapes(scheduler, runner, 2) == [(5, 0), (0, 192)]
    for key, tenant in ((21, "quiet"), (22, "calm")):
        scheduler.add(make_sequence(key, 60, tenant=tenant), 0.0)
    # A tile each; what is left of the turn is whole tiles.
    assert shapes(scheduler, runner, 5) == [(5, 0), (0, 64), (0, 64), (0, 64), (7, 0)]
    assert all(scheduler._alive[key].is_decoding for key in (21, 22))


def test_short_prompts_alone_share_a_step() -> None:
    scheduler, runner = make_tiled(8, answers=4)
    for key in range(20, 24):
        scheduler.add(make_sequence(key, 40), 0.0)
    assert shapes(scheduler, runner, 2) == [(4, 0), (0, 160)]


@pytest.mark.parametrize(("num_prompt", "steps"), [(288, [288]), (289, [192, 97])])
def test_a_rest_of_half_a_step_is_computed_with_it_where_nobody_answers(
    num_prompt: int, steps: list[int]
) -> None:
    scheduler, runner = make_tiled(8, answers=0)
    scheduler.add(make_sequence(20, num_prompt), 0.0)
    assert shapes(scheduler, runner, len(steps)) == [(0, count) for count in steps]


def test_a_second_prompt_that_ends_in_it_shares_a_step_where_nobody_answers() -> None:
    scheduler, runner = make_tiled(8, answers=0)
    for key, num_prompt in ((20, 191), (21, 97), (22, 100)):
        scheduler.add(make_sequence(key, num_prompt), 0.0)
    assert shapes(scheduler, runner, 1) == [(0, 288)]


def test_one_slow_step_is_forgotten() -> None:
    budget = PrefillBudget(512, tile_rows=64)
    prompt = make_sequence(20, 5000)
    for depth, token_s, steps in ((0, 0.2, 1), (2048, 0.005, 30)):
        chunk = Chunk(prompt, depth, 64, wants_token=False, is_decode=False)
        for _ in range(steps):
            budget.observe(StepPlan((chunk,), ()), 64 * token_s)
    assert budget.turn(1, [PendingPrompt(0, 100, 100)] * 2) == 192


def test_few_answers_share_a_step_below_a_tile_until_the_prompt_is_far() -> None:
    scheduler, runner = make_tiled(2, answers=1)
    scheduler.add(make_sequence(20, 1300), 0.0)
    seen = shapes(scheduler, runner, 26)
    near = [one for one in seen if one[0] and one[1]]
    assert near[:17] == [(1, 59)] * 17
    assert (0, 64) in seen
    assert all(sum(one) <= 64 for one in seen)


def test_a_cached_prefix_counts_before_the_first_step() -> None:
    scheduler, runner = make_tiled(8, answers=5)
    scheduler.add(make_sequence(30, 2000, max_new=1), 0.0)
    while scheduler.is_alive(30):
        shapes(scheduler, runner, 1)
    follower = make_sequence(30, 2250)  # the next turn of the same conversation
    scheduler.add(follower, 0.0)
    assert shapes(scheduler, runner, 4) == [(5, 0), (0, 64), (5, 0), (0, 64)]
    assert follower.num_cached == 2000


def test_a_short_question_about_a_cached_text_does_not_wait_for_longer_ones() -> None:
    scheduler, runner = make_tiled(8, answers=5)
    scheduler.add(make_sequence(30, 300, tenant="quiet", max_new=1), 0.0)
    while scheduler.is_alive(30):
        shapes(scheduler, runner, 1)
    scheduler.add(make_sequence(20, 900), 0.0)
    assert shapes(scheduler, runner, 4) == [(5, 0), (0, 192)] * 2
    scheduler.add(make_sequence(30, 340, tenant="quiet"), 0.0)
    assert shapes(scheduler, runner, 2) == [(5, 0), (0, 64)]
    assert scheduler._alive[30].is_decoding


def test_a_near_prompt_before_a_far_one_has_larger_steps() -> None:
    scheduler, runner = make_tiled(8, answers=5)
    scheduler.add(make_sequence(20, 2000), 0.0)
    while scheduler._alive[20].num_computed < FAR_TOKENS:
        shapes(scheduler, runner, 1)
    scheduler.add(make_sequence(21, 300, tenant="quiet"), 0.0)
    shapes(scheduler, runner, 4)  # the far one is first in line, and its turns are a tile each
    assert scheduler._alive[20].num_computed == FAR_TOKENS + 2 * 64 + 64
    seen = [rows for answers, rows in shapes(scheduler, runner, 4) if not answers]
    assert seen == [192, 64]
    assert scheduler._alive[21].num_computed == 64 + 192


def test_a_target_bounds_the_turn() -> None:
    scheduler, runner = make_tiled(8, answers=7, itl_target_s=0.4)
    scheduler.add(make_sequence(20, 300), 0.0)
    assert max(one[1] for one in shapes(scheduler, runner, 9)) == 64
    impatient, runner = make_tiled(8, answers=7, itl_target_s=0.1)
    impatient.add(make_sequence(20, 300), 0.0)
    assert max(one[1] for one in shapes(impatient, runner, 9)) == MIN_PREFILL_TOKENS - 3
    impatient.add(make_sequence(21, 1500), 0.0)
    far = [rows for answers, rows in shapes(impatient, runner, 90) if not answers]
    assert max(far) == MIN_PREFILL_TOKENS
