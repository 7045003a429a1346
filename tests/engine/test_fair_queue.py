"""Who is next, and what it costs."""

import numpy as np

from nexa_runtime.engine.fair_queue import FairQueue
from nexa_runtime.engine.sequence import Sequence, TenantShare


def sequence(key: int, tenant: str, *, weight: float = 1.0, priority: int = 0) -> Sequence:
    return Sequence(
        key,
        np.array([1], dtype=np.int32),
        max_new_tokens=1,
        share=TenantShare(tenant, weight),
        cache_namespace=tenant,
        priority=priority,
    )


def order(queue: FairQueue) -> list[str]:
    return [head.share.tenant_id for head in queue.heads()]


def test_within_a_tenant_priority_goes_before_arrival() -> None:
    queue = FairQueue()
    first, urgent = sequence(1, "a"), sequence(2, "a", priority=5)
    queue.push(first)
    queue.push(urgent)
    assert queue.heads() == [urgent]
    queue.take(urgent)
    assert queue.heads() == [first]


def test_the_tenant_that_has_paid_least_is_next() -> None:
    queue = FairQueue()
    for key, tenant in enumerate(["a", "b"]):
        queue.push(sequence(key, tenant))
    queue.charge("a", 10)
    assert order(queue) == ["b", "a"]


def test_weight_divides_what_work_costs() -> None:
    queue = FairQueue()
    queue.push(sequence(1, "light", weight=1))
    queue.push(sequence(2, "heavy", weight=4))
    queue.charge("light", 100)
    queue.charge("heavy", 300)
    assert order(queue) == ["heavy", "light"]


def test_a_newcomer_starts_where_the_active_ones_are() -> None:
    queue = FairQueue()
    queue.push(sequence(1, "old"))
    queue.charge("old", 1000)
    queue.push(sequence(2, "new"))
    assert queue.virtual_time("new") == 1000


def test_going_idle_for_a_moment_forgives_nothing() -> None:
    queue = FairQueue()
    greedy, steady = sequence(1, "greedy"), sequence(2, "steady")
    queue.push(greedy)
    queue.push(steady)
    queue.take(greedy)
    queue.charge("greedy", 500)
    queue.charge("steady", 10)
    queue.finish(greedy)
    queue.push(sequence(3, "greedy"))
    assert queue.virtual_time("greedy") == 500
    assert order(queue) == ["steady", "greedy"]


def test_work_done_while_alone_is_not_held_against_a_tenant() -> None:
    queue = FairQueue()
    alone = sequence(1, "alone")
    queue.push(alone)
    queue.take(alone)
    queue.charge("alone", 10_000)
    queue.finish(alone)
    queue.push(sequence(2, "other"))
    queue.push(sequence(3, "alone"))
    assert queue.virtual_time("other") == queue.virtual_time("alone")


def test_removing_from_the_middle_keeps_the_order() -> None:
    queue = FairQueue()
    items = [sequence(key, "a") for key in range(5)]
    for item in items:
        queue.push(item)
    queue.take(items[2])
    queue.finish(items[2])
    seen = []
    while heads := queue.heads():
        seen.append(heads[0].key)
        queue.take(heads[0])
    assert seen == [0, 1, 3, 4]
    queue.check_integrity({"a": 4})
