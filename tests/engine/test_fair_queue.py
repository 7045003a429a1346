"""Who is next, and what it costs."""

import numpy as np

from nexa_runtime.engine.fair_queue import Accounts, FairQueue
from nexa_runtime.engine.sequence import Sequence, TenantShare


class Line:
    """A queue with its accounts, as the scheduler uses them."""

    def __init__(self) -> None:
        self.accounts = Accounts()
        self.queue = FairQueue(self.accounts)
        self._keys = 0

    def push(self, tenant: str, *, weight: float = 1.0, priority: int = 0) -> Sequence:
        self._keys += 1
        sequence = Sequence(
            self._keys,
            np.array([1], dtype=np.int32),
            max_new_tokens=1,
            share=TenantShare(tenant, weight),
            cache_namespace=tenant,
            priority=priority,
        )
        self.accounts.enter(sequence.share)
        self.queue.push(sequence)
        return sequence

    def order(self) -> list[str]:
        return [head.share.tenant_id for head in self.queue.heads()]


def test_within_a_tenant_priority_goes_before_arrival() -> None:
    line = Line()
    first, urgent = line.push("a"), line.push("a", priority=5)
    assert line.queue.heads() == [urgent]
    line.queue.take(urgent)
    assert line.queue.heads() == [first]


def test_the_tenant_that_has_paid_least_is_next() -> None:
    line = Line()
    line.push("a")
    line.push("b")
    line.accounts.charge("a", 10)
    assert line.order() == ["b", "a"]


def test_weight_divides_what_work_costs() -> None:
    line = Line()
    line.push("light", weight=1)
    line.push("heavy", weight=4)
    line.accounts.charge("light", 100)
    line.accounts.charge("heavy", 300)
    assert line.order() == ["heavy", "light"]


def test_a_newcomer_starts_where_the_active_ones_are() -> None:
    line = Line()
    line.push("old")
    line.accounts.charge("old", 1000)
    line.push("new")
    assert line.accounts.virtual_time("new") == 1000


def test_going_idle_for_a_moment_forgives_nothing() -> None:
    line = Line()
    greedy = line.push("greedy")
    line.push("steady")
    line.queue.take(greedy)
    line.accounts.charge("greedy", 500)
    line.accounts.charge("steady", 10)
    line.accounts.leave("greedy")
    line.push("greedy")
    assert line.accounts.virtual_time("greedy") == 500
    assert line.order() == ["steady", "greedy"]


def test_work_done_while_alone_is_not_held_against_a_tenant() -> None:
    line = Line()
    line.queue.take(line.push("alone"))
    line.accounts.charge("alone", 10_000)
    line.accounts.leave("alone")
    line.push("other")
    line.push("alone")
    assert line.accounts.virtual_time("other") == line.accounts.virtual_time("alone")


def test_idle_tenants_are_forgotten() -> None:
    accounts = Accounts()
    for index in range(1000):
        share = TenantShare(f"tenant-{index}")
        accounts.enter(share)
        accounts.charge(share.tenant_id, index)
        accounts.leave(share.tenant_id)
    assert len(accounts._accounts) <= 1


def test_taking_from_the_middle_and_putting_back_keep_the_order() -> None:
    line = Line()
    items = [line.push("a") for _ in range(5)]
    line.queue.take(items[2])
    line.queue.take(items[0])
    line.queue.put_back(items[0])
    seen = []
    while heads := line.queue.heads():
        seen.append(heads[0].key)
        line.queue.take(heads[0])
    assert seen == [1, 2, 4, 5]
    assert line.queue.num_waiting == 0
