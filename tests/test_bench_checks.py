"""What the measuring scripts call broken: a check that finds nothing proves nothing."""

import json
from typing import Any

import pytest

from scripts.bench.answers import problem_of_refusal, problem_of_stream
from scripts.bench.process import least_squares, slope
from scripts.bench.soak import check_records

ERROR = {"message": "no", "type": "server_error", "param": None, "code": "overloaded"}
HEADERS = {"x-request-id": "req_1", "retry-after": "1"}
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


def problem(error: Any, headers: Any = HEADERS, status: int = 503, path: str = CHAT) -> str | None:
    return problem_of_refusal(status, headers, json.dumps(error).encode(), path)


def test_a_refusal_that_has_everything_is_none_to_complain_of() -> None:
    assert problem({"error": ERROR}) is None
    assert problem({"error": ERROR}, {"x-request-id": "req_1"}, status=400) is None
    assert (
        problem({"type": "error", "error": {"type": "overloaded_error", "message": "no"}}, path=MESSAGES)
        is None
    )


@pytest.mark.parametrize(
    ("error", "headers", "path"),
    [
        ({"error": ERROR}, {"retry-after": "1"}, CHAT),
        ({"error": ERROR}, {"x-request-id": "req_1"}, CHAT),
        ({"error": ERROR}, HEADERS | {"retry-after": "0"}, CHAT),
        ({"error": {"message": "no"}}, HEADERS, CHAT),
        ({"error": ERROR | {"message": ""}}, HEADERS, CHAT),
        ({"detail": "no"}, HEADERS, CHAT),
        (["no"], HEADERS, CHAT),
        ({"error": {"type": "overloaded_error", "message": "no"}}, HEADERS, MESSAGES),
    ],
)
def test_a_refusal_that_lacks_anything_is_found(error: Any, headers: Any, path: str) -> None:
    assert problem(error, headers, path=path) is not None


def test_a_refusal_that_is_no_json_is_found() -> None:
    assert problem_of_refusal(503, HEADERS, b"Service Unavailable", CHAT) is not None


@pytest.mark.parametrize(
    ("lines", "is_good"),
    [
        (['data: {"choices": []}', "", "data: [DONE]", "", ""], True),
        (["event: message_stop", 'data: {"type": "message_stop"}', ""], True),
        (["event: response.completed", "data: {}", ""], True),
        (['data: {"choices": []}', ""], False),
        (['data: {"error": {"code": "draining"}}', ""], False),
        (['data: {"error":{"code":"draining"}}', "", "data: [DONE]"], False),
        (["event: response.failed", "data: {}"], False),
        ([], False),
    ],
)
def test_a_stream_is_whole_or_it_is_found(lines: list[str], is_good: bool) -> None:
    assert (problem_of_stream(lines) is None) == is_good


def test_growth_is_seen_through_jumps() -> None:
    leaking = [(minute / 10, 100 + 2 * minute / 10) for minute in range(100)]
    jumping = [(minute / 10, 100.0 + (50 if minute % 17 == 0 else 0)) for minute in range(100)]
    assert slope(leaking) == pytest.approx(2)
    assert least_squares(leaking) == pytest.approx(2)
    assert slope(jumping) == 0
    assert slope([]) == slope([(0, 1)]) == least_squares([]) == 0


def test_records_that_are_lost_or_came_twice_are_found() -> None:
    records = [{"id": "a"}, {"id": "b"}]
    assert check_records(records, 2) == []
    assert len(check_records(records, 3)) == 1
    assert len(check_records([*records, {"id": "a"}], 2)) == 1
