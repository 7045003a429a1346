"""Turns of sets of adapters, on the scheduler alone: no model, no threads, no clock."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_runtime.engine.adapter_sets import TURN_S, TURN_STEPS
from nexa_runtime.engine.fair_queue import Accounts
from nexa_runtime.engine.kv_cache import KvCache
from nexa_runtime.engine.scheduler import Scheduler
from nexa_runtime.engine.sequence import Sequence, StepPlan, TenantShare
from nexa_runtime.lora import NO_ADAPTERS, AdapterSet
from tests.engine.fakes import FakeRunner

A: AdapterSet = (("a", 1.0),)
B: AdapterSet = (("b", 1.0),)


@dataclass
class Box:
    """A scheduler with a fake runner. ``steps`` and ``seconds`` of each set; ``rows`` of each sequence."""

    slots: int = 8
    tile_rows: int | None = None
    steps: Counter[AdapterSet] = field(default_factory=Counter)
    seconds: defaultdict[AdapterSet, float] = field(default_factory=lambda: defaultdict(float))
    rows: Counter[int] = field(default_factory=Counter)
    num_turns: int = 0

    def __post_init__(self) -> None:
        self.runner = FakeRunner(is_thorough=False)
        self.scheduler = Scheduler(
            slots=self.slots,
            step_tokens=256,
            kv_cache=KvCache(num_ids=2 * self.slots, num_cells=20_000),
            accounts=Accounts(),
            tile_rows=self.tile_rows,
        )
        self._last: AdapterSet | None = None

    def add(
        self,
        key: int,
        tenant: str,
        adapters: AdapterSet,
        *,
        prompt: int = 8,
        new: int = 2000,
        weight: float = 1,
    ) -> Sequence:
        sequence = Sequence(
            key,
            np.arange(prompt, dtype=np.int32) + 100 * key,
            max_new_tokens=new,
            share=TenantShare(tenant, weight=weight),
            cache_namespace=tenant,
            adapters=adapters,
        )
        self.scheduler.add(sequence, 0.0)
        return sequence

    def step(self) -> StepPlan | None:
        plan = self.scheduler.schedule(0.0)
        if plan is None:
            return None
        result = self.runner.execute(plan)
        self.scheduler.commit(plan, result)
        if plan.chunks:
            adapters = plan.chunks[0].sequence.adapters
            self.steps[adapters] += 1
            self.seconds[adapters] += result.elapsed_s
            self.num_turns += adapters != self._last
            self._last = adapters
        for chunk in plan.chunks:
            self.rows[chunk.sequence.key] += chunk.count
        return plan

    def run(self, num_steps: int, before: Callable[[int], None] = lambda step: None) -> None:
        for step in range(num_steps):
            before(step)
            assert self.step() is not None


def test_one_set_alone_has_no_turns() -> None:
    box = Box()
    box.add(1, "x", A)
    box.add(2, "y", A)
    running = box.scheduler._slots.running
    box.run(3)
    assert box.scheduler._turns.members(running) is running


def test_two_tenants_with_a_set_each_have_half_of_the_time_whatever_their_rows() -> None:
    box = Box()
    box.add(1, "x", A)
    for key in range(2, 9):
        box.add(key, "y", B)
    box.run(600)
    assert box.seconds[A] == pytest.approx(box.seconds[B], rel=0.05)
    assert box.num_turns > 600 / TURN_STEPS


def test_a_turn_is_some_steps_so_that_sets_do_not_change_all_the_time() -> None:
    box = Box()
    box.add(1, "x", A)
    box.add(2, "y", B)
    box.run(100)
    step_s = box.seconds[A] / box.steps[A]
    assert 100 / box.num_turns >= min(TURN_STEPS, TURN_S / step_s)


def test_time_is_shared_by_weight() -> None:
    box = Box()
    box.add(1, "gold", A, weight=3.0)
    box.add(2, "tin", B)
    box.run(600)
    assert box.seconds[A] == pytest.approx(3 * box.seconds[B], rel=0.05)


def test_many_sets_of_one_tenant_buy_no_more_than_one() -> None:
    box = Box()
    box.add(1, "one", A)
    for key in range(2, 9):
        box.add(key, "many", (("b", float(key)),))
    box.run(1200)
    others = [seconds for adapters, seconds in box.seconds.items() if adapters != A]
    assert sum(others) == pytest.approx(box.seconds[A], rel=0.1)
    assert min(others) > 0.6 * max(others)


def test_new_sets_all_the_time_keep_no_old_one_out() -> None:
    box = Box(slots=2)
    old = box.add(1, "x", A)

    def come(step: int) -> None:
        if len(box.scheduler._alive) < 3:
            box.add(100 + step, "x" if step % 2 else "y", (("b", 1.0 + step),), new=1)

    box.run(300, come)
    assert old.num_new >= 75


def test_a_tenant_that_rides_along_with_another_does_not_pay_for_it() -> None:
    box = Box()
    box.add(1, "x", A)
    box.add(2, "y", A)
    own = box.add(3, "y", B)
    box.run(300)
    assert own.num_new >= 120


def test_a_tenant_that_comes_late_has_no_turns_to_catch_up_on() -> None:
    box = Box(slots=3)
    box.add(1, "x", A)
    box.add(2, "y", B)
    box.run(200)
    box.add(3, "z", NO_ADAPTERS)
    box.steps.clear()
    box.run(300)
    assert box.steps[NO_ADAPTERS] == pytest.approx(100, abs=TURN_STEPS)


@pytest.mark.parametrize("tile_rows", [None, 64])
def test_a_long_prompt_with_other_adapters_does_not_hold_up_answers(tile_rows: int | None) -> None:
    box = Box(tile_rows=tile_rows)
    talking = box.add(1, "x", A)
    box.run(40)
    box.add(2, "y", B, prompt=5000, new=1)
    spoken, gap, longest = talking.num_new, 0, 0
    while box.scheduler.is_alive(2):
        plan = box.step()
        assert plan is not None
        gap = 0 if talking.num_new > spoken else gap + plan.num_rows
        longest = max(longest, gap)
        spoken = talking.num_new
    assert longest <= 3 * 256
    assert box.steps[A] > 40


def test_prompts_and_answers_of_a_set_keep_their_turns_while_another_set_has_its_own() -> None:
    box = Box(slots=16, tile_rows=64)
    for key in range(1, 6):
        box.add(key, "x", A)
        box.add(10 + key, "y", B)
    box.run(60)
    late = [box.add(20, "x", A, prompt=400), box.add(21, "y", B, prompt=400)]
    box.run(200)
    assert all(one.num_new for one in late)


asked = st.lists(
    st.tuples(
        st.sampled_from("xyz"),
        st.sampled_from([NO_ADAPTERS, A, B, (("a", 0.5), ("b", 0.5))]),
        st.integers(1, 300),  # prompt tokens
        st.integers(1, 60),  # new tokens
        st.integers(0, 60),  # step of arrival
    ),
    min_size=2,
    max_size=20,
)


@settings(max_examples=60, deadline=None)
@given(asked, st.integers(1, 8), st.sampled_from([None, 64]))
def test_every_set_that_runs_goes_on_within_a_bounded_number_of_steps(
    drawn: list[tuple[str, AdapterSet, int, int, int]], slots: int, tile_rows: int | None
) -> None:
    box = Box(slots=slots, tile_rows=tile_rows)
    sequences: list[Sequence] = []
    waited: Counter[AdapterSet] = Counter()
    weights = {"x": 2.0, "y": 1.0, "z": 0.5}
    for step in range(20_000):
        for key, (tenant, adapters, prompt, new, arrives_at) in enumerate(drawn, start=1):
            if arrives_at == step:
                weight = weights[tenant]
                sequences.append(box.add(key, tenant, adapters, prompt=prompt, new=new, weight=weight))
        plan = box.step()
        if step % 10 == 0:
            box.scheduler.check_integrity()
        if plan is None and step > 60:
            break
        assert plan is None or plan.chunks or not box.scheduler._slots.running
        has_run = {chunk.sequence.adapters for chunk in plan.chunks} if plan is not None else set()
        running = {one.adapters for one in box.scheduler._slots.running}
        waited = Counter({adapters: waited[adapters] + 1 for adapters in running - has_run})
        # Four sets, weights of 4 to 1, and steps of 30 to 540 ms.
        assert max(waited.values(), default=0) <= 200
    assert all(one.finish_reason is not None for one in sequences)
    assert len(sequences) == len(drawn)
    assert not box.scheduler._turns._sets
