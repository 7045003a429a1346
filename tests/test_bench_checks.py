"""What the measuring scripts call broken: a check that finds nothing proves nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.bench.answers import problem_of_refusal, problem_of_stream
from scripts.bench.common import BenchError
from scripts.bench.process import least_squares, slope
from scripts.bench.race import OURS, THEIRS, append_result, check_same_race, read_results, table
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


def race_result(server: str, pair: int = 0, **measures: float) -> dict[str, Any]:
    tokens = {"prompt_tokens": 1000, "output_tokens": 256, "tokens_per_s": 20.0}
    all_measures = tokens | {"start_s": 1.0, "peak_bytes": 1e9} | measures
    return {"row": "one", "pair": pair, "server": server, "measures": all_measures}


def test_a_race_goes_on_after_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "race.jsonl"
    assert read_results(path) == []
    append_result(path, race_result(OURS))
    append_result(path, race_result(THEIRS))
    whole = path.read_bytes()
    for end in (1, len(whole) // 2 + 5, len(whole) - 1):
        path.write_bytes(whole[:end])
        kept = read_results(path)
        assert kept == [race_result(OURS), race_result(THEIRS)][: len(kept)]
        append_result(path, race_result(OURS, pair=1))
        assert read_results(path) == [*kept, race_result(OURS, pair=1)]


@pytest.mark.parametrize(
    "line", [b"", b"[1]", b"7", b"\xff", b'{"row": "one"}', json.dumps(race_result("other")).encode()]
)
def test_a_line_that_is_no_result_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "race.jsonl"
    append_result(path, race_result(OURS))
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(BenchError, match="line 2 of"):
        read_results(path)


def test_a_race_does_not_go_on_with_the_results_of_another() -> None:
    about = {"threads": 2, "settings": ["A=1"]}
    check_same_race([race_result(OURS), race_result(OURS) | about | {"commit": "1234567"}], about)
    with pytest.raises(BenchError, match=r"result 2 .*'threads': 4"):
        check_same_race([race_result(OURS), race_result(OURS) | about | {"threads": 4}], about)


def test_a_race_says_when_the_work_was_not_the_same() -> None:
    ours = race_result(OURS)
    assert "unequal" not in table([ours, race_result(THEIRS)])
    assert "unequal" in table([ours, race_result(THEIRS, output_tokens=240)])
    del ours["measures"]["output_tokens"]
    assert "unequal" in table([ours, race_result(THEIRS)])
