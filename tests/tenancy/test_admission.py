"""Admission: exact counts, in the order of their cost."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_runtime.errors import (
    InvalidRequestError,
    OverloadedError,
    RequestRateError,
    TenantQueueFullError,
    TokenRateError,
)
from nexa_runtime.tenancy.admission import (
    MAX_ACCOUNTS,
    MAX_QUICK,
    QUEUE_PER_SLOT,
    WINDOW_S,
    Admission,
    Ticket,
)
from nexa_runtime.tenancy.tenant import Limits, Tenant

SLOTS = 4


class Clock:
    def __init__(self) -> None:
        self.now = 500.0

    def __call__(self) -> float:
        return self.now


def tenant(name: str = "acme", **limits: int) -> Tenant:
    return Tenant(name, Limits(**limits), "file", "1")  # type: ignore[arg-type]


def make(max_queue: int | None = 1000) -> tuple[Admission, Clock]:
    clock = Clock()
    return Admission(max_queue=max_queue, clock=clock), clock


def test_exactly_as_many_as_the_limit_says_pass_in_any_sixty_seconds() -> None:
    admission, clock = make()
    acme = tenant(requests_per_minute=120, max_queue=1000)
    passed = 0
    for _ in range(500):
        with suppress(RequestRateError):
            admission.admit(acme, slots=SLOTS)
            passed += 1
    assert passed == 120
    clock.now += WINDOW_S - 0.001
    with pytest.raises(RequestRateError):
        admission.admit(acme, slots=SLOTS)
    clock.now += 0.001
    admission.admit(acme, slots=SLOTS)


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans()), max_size=80), st.integers(1, 6))
def test_no_window_ever_holds_more_than_the_limit(moves: list[tuple[float, bool]], limit: int) -> None:
    admission, clock = make()
    acme = tenant(requests_per_minute=limit)
    passed: list[float] = []
    for wait_s, obeys in moves:
        clock.now += wait_s
        try:
            admission.admit(acme, slots=SLOTS).settle()
            passed.append(clock.now)
        except RequestRateError as error:
            if obeys:
                clock.now += error.retry_after_s + 1e-6
                admission.admit(acme, slots=SLOTS).settle()
                passed.append(clock.now)
    for at in passed:
        assert sum(at - WINDOW_S < other <= at for other in passed) <= limit


def test_a_request_refused_for_a_full_queue_costs_no_request() -> None:
    admission, _ = make()
    acme = tenant(requests_per_minute=10, max_queue=1, max_concurrency=1)
    tickets = [admission.admit(acme, slots=SLOTS) for _ in range(2)]
    for _ in range(50):
        with pytest.raises(TenantQueueFullError):
            admission.admit(acme, slots=SLOTS)
    assert admission.rates(acme)["requests"].remaining == 8
    for ticket in tickets:
        ticket.settle()
    for _ in range(8):
        admission.admit(acme, slots=SLOTS).settle()
    with pytest.raises(RequestRateError):
        admission.admit(acme, slots=SLOTS)


def test_tokens_are_reserved_at_most_and_settled_to_what_was_used() -> None:
    admission, clock = make()
    acme = tenant(tokens_per_minute=1000)
    first = admission.admit(acme, slots=SLOTS)
    first.reserve(900)
    second = admission.admit(acme, slots=SLOTS)
    with pytest.raises(TokenRateError) as caught:
        second.reserve(200)
    assert (caught.value.asked, caught.value.remaining) == (200, 100)
    first.settle(prompt_tokens=50, completion_tokens=30)
    assert admission.rates(acme)["tokens"].remaining == 920
    second.reserve(200)
    second.settle(prompt_tokens=100, completion_tokens=100)
    assert admission.rates(acme)["tokens"].remaining == 720
    clock.now += WINDOW_S
    assert admission.rates(acme)["tokens"].remaining == 1000
    assert admission.usage("acme").prompt_tokens == 150


def test_a_request_larger_than_the_limit_may_have_all_of_it() -> None:
    admission, _ = make()
    acme = tenant(tokens_per_minute=100)
    ticket = admission.admit(acme, slots=SLOTS)
    ticket.reserve(5000)
    assert admission.rates(acme)["tokens"].remaining == 0
    ticket.settle(prompt_tokens=10)
    assert admission.rates(acme)["tokens"].remaining == 90


def test_what_still_runs_stays_in_the_window() -> None:
    admission, clock = make()
    acme = tenant(tokens_per_minute=100)
    admission.admit(acme, slots=SLOTS).reserve(100)
    clock.now += 10 * WINDOW_S
    with pytest.raises(TokenRateError):
        admission.admit(acme, slots=SLOTS).reserve(1)


def test_when_tokens_are_free_again_is_told() -> None:
    admission, clock = make()
    acme = tenant(tokens_per_minute=100)
    for _ in range(2):
        ticket = admission.admit(acme, slots=SLOTS)
        ticket.reserve(50)
        ticket.settle(prompt_tokens=50)
        clock.now += 10
    with pytest.raises(TokenRateError) as caught:
        admission.admit(acme, slots=SLOTS).reserve(60)
    assert caught.value.retry_after_s == WINDOW_S - 10
    clock.now += WINDOW_S - 10
    admission.admit(acme, slots=SLOTS).reserve(60)


def test_settling_twice_counts_once() -> None:
    admission, _ = make()
    ticket = admission.admit(tenant(), slots=SLOTS)
    ticket.settle(prompt_tokens=5)
    ticket.settle(prompt_tokens=5)
    assert (admission.num_open, admission.usage("acme").prompt_tokens) == (0, 5)


def test_a_flood_fills_its_own_part_of_the_queue_only() -> None:
    admission, _ = make(max_queue=20)
    flood, guest = tenant("flood"), tenant("guest")
    for _ in range(SLOTS + 20):
        admission.admit(flood, slots=SLOTS)
    for _ in range((SLOTS + 20) // 2):
        admission.admit(guest, slots=SLOTS)
    with pytest.raises(OverloadedError):
        admission.admit(guest, slots=SLOTS)
    with pytest.raises(OverloadedError):
        admission.admit(flood, slots=SLOTS)


def test_where_nobody_says_a_few_may_wait_for_each_slot() -> None:
    admission, _ = make(max_queue=None)
    for _ in range(SLOTS + QUEUE_PER_SLOT * SLOTS):
        admission.admit(tenant(), slots=SLOTS)
    with pytest.raises(OverloadedError, match=f" {QUEUE_PER_SLOT * SLOTS} requests are waiting"):
        admission.admit(tenant(), slots=SLOTS)


def test_a_line_that_was_too_long_is_a_short_one_until_nobody_waits() -> None:
    admission, _ = make(max_queue=None)
    acme = tenant()
    tickets = [admission.admit(acme, slots=SLOTS) for _ in range(SLOTS + QUEUE_PER_SLOT * SLOTS)]
    with pytest.raises(OverloadedError):
        admission.admit(acme, slots=SLOTS)
    while len(tickets) > 2 * SLOTS:
        tickets.pop().settle(prompt_tokens=1)
        if len(tickets) >= 2 * SLOTS:
            with pytest.raises(OverloadedError):
                admission.admit(acme, slots=SLOTS)
    for _ in range(50):  # the excess goes on: whoever is let in finds as many ahead as there are slots
        tickets.pop().settle(prompt_tokens=1)
        tickets.append(admission.admit(acme, slots=SLOTS))
        with pytest.raises(OverloadedError):
            admission.admit(acme, slots=SLOTS)
    while len(tickets) > SLOTS:
        tickets.pop().settle(prompt_tokens=1)
    for _ in range(QUEUE_PER_SLOT * SLOTS):
        admission.admit(acme, slots=SLOTS)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=200), st.integers(0, 12))
def test_no_move_makes_a_line_longer_than_it_may_be(moves: list[tuple[str, int]], max_queue: int) -> None:
    """``moves``: one of that tenant's ends (0), or asks for so many answers."""
    admission, _ = make(max_queue=max_queue)
    tickets: dict[str, list[tuple[int, Ticket]]] = {name: [] for name in "abc"}
    has_refused = False
    for name, count in moves:
        held = {one: sum(size for size, _ in tickets[one]) for one in tickets}
        num_open = sum(held.values())
        assert admission.num_open == num_open
        if not count:
            if tickets[name]:
                tickets[name].pop(0)[1].settle()
            continue
        has_refused = has_refused and num_open > SLOTS
        places = SLOTS + (min(max_queue, SLOTS) if has_refused else max_queue)
        equal_part = places // len({one for one in held if held[one]} | {name})
        try:
            tickets[name].append((count, admission.admit(tenant(name), slots=SLOTS, count=count)))
        except OverloadedError:
            assert num_open + count > places
            assert held[name] + count > equal_part
            has_refused = True
        else:
            assert num_open + count <= places or held[name] + count <= equal_part
    for _, ticket in [pair for pairs in tickets.values() for pair in pairs]:
        ticket.settle()
    assert admission.num_open == 0
    assert admission.open_ids() == []


def test_what_needs_no_slot_has_a_line_of_its_own() -> None:
    admission, _ = make(max_queue=0)
    acme = tenant(max_queue=1000)
    answers = [admission.admit(acme, slots=SLOTS) for _ in range(SLOTS)]
    with pytest.raises(OverloadedError):
        admission.admit(acme, slots=SLOTS)
    texts = [admission.admit(acme, slots=SLOTS, count=0) for _ in range(SLOTS + MAX_QUICK)]
    with pytest.raises(OverloadedError):
        admission.admit(acme, slots=SLOTS, count=0)
    answers.pop().settle()
    admission.admit(acme, slots=SLOTS)
    for ticket in texts:
        ticket.settle()
    assert admission.num_open == SLOTS


def test_a_request_larger_than_the_line_enters_where_a_slot_is_free() -> None:
    admission, _ = make(max_queue=None)
    acme = tenant()
    first = admission.admit(acme, slots=SLOTS, count=100)
    with pytest.raises(OverloadedError):
        admission.admit(acme, slots=SLOTS, count=100)
    first.settle()
    admission.admit(acme, slots=SLOTS)
    admission.admit(acme, slots=SLOTS, count=100)


def test_tenants_that_have_nothing_are_forgotten_beyond_a_bound() -> None:
    admission, _ = make()
    busy = admission.admit(tenant("busy"), slots=SLOTS)
    admission.admit(tenant("counted", requests_per_minute=1), slots=SLOTS).settle()
    for number in range(MAX_ACCOUNTS + 50):
        admission.admit(tenant(f"t{number}"), slots=SLOTS).settle()
    assert len(admission.tenant_ids()) == MAX_ACCOUNTS
    with pytest.raises(RequestRateError):
        admission.admit(tenant("counted", requests_per_minute=1), slots=SLOTS)
    busy.settle(prompt_tokens=3)
    assert admission.usage("busy").prompt_tokens == 3
    assert admission.usage("t0").requests == 0


def test_more_prompts_than_can_ever_wait_are_a_bad_request() -> None:
    admission, _ = make(max_queue=2)
    with pytest.raises(InvalidRequestError, match="At most 6 answers"):
        admission.admit(tenant(), slots=SLOTS, count=7)


def test_retry_after_follows_the_rate_at_which_requests_end() -> None:
    admission, clock = make(max_queue=0)
    acme = tenant(max_queue=0)

    def retry_after_s() -> float:
        with pytest.raises(TenantQueueFullError) as caught:
            admission.admit(acme, slots=SLOTS)
        return caught.value.retry_after_s

    tickets: list[Ticket] = [admission.admit(acme, slots=SLOTS) for _ in range(SLOTS)]
    assert retry_after_s() == 1
    for ticket in tickets:
        clock.now += 12
        ticket.settle(prompt_tokens=1)
    clock.now += 3600  # being idle says nothing about the rate
    for _ in range(SLOTS):
        admission.admit(acme, slots=SLOTS)
    # Whoever is refused gets a time after those who were refused before.
    assert [retry_after_s() for _ in range(3)] == pytest.approx([18, 36, 54])
    assert [retry_after_s() for _ in range(9)][-1] == WINDOW_S


def test_appointments_end_with_the_excess_that_they_were_given_to() -> None:
    admission, clock = make(max_queue=0)
    admission.admit(tenant(), slots=1)
    for _ in range(10_000):
        with pytest.raises(OverloadedError):
            admission.admit(tenant(), slots=1)
    clock.now += WINDOW_S
    with pytest.raises(OverloadedError) as caught:
        admission.admit(tenant(), slots=1)
    assert caught.value.retry_after_s == 1


def test_unlimited_windows_are_not_shown() -> None:
    admission, _ = make()
    assert admission.rates(tenant()) == {}
    assert set(admission.rates(tenant(requests_per_minute=5))) == {"requests"}
