"""Every fault on the way of a file."""

from pathlib import Path

import pytest

from nexa_runtime.errors import (
    HubAccessError,
    HubUnavailableError,
    IntegrityError,
    NotFoundError,
)
from nexa_runtime.store import transfer
from nexa_runtime.store.catalog import HubReference
from nexa_runtime.store.transfer import retry_after_s
from tests.hub_models import SHA256, SIZE, Waits, demo_bytes, fetch, hub_of, plan_of
from tests.hub_standin import HUB_TOKEN, Fault, FaultKind, HubStandin


def test_a_file_arrives_and_the_bytes_that_are_there_are_counted(
    standin: HubStandin, waits: Waits, partial: Path
) -> None:
    plan, seen = plan_of(standin), list[int]()
    hub_of(standin, waits).download(plan, plan.files[0], partial, seen.append)
    assert partial.read_bytes() == demo_bytes()
    assert seen == sorted(seen)
    assert seen[-1] == SIZE


@pytest.mark.parametrize("num_bytes", [1, 12345, SIZE - 1])
def test_a_transfer_goes_on_where_it_ended(
    standin: HubStandin, waits: Waits, partial: Path, num_bytes: int
) -> None:
    partial.parent.mkdir()
    partial.write_bytes(demo_bytes()[:num_bytes])
    fetch(standin, partial, waits)
    assert partial.read_bytes() == demo_bytes()
    assert standin.bytes_sent[SHA256] == SIZE - num_bytes
    assert standin.ranges == [f"bytes={num_bytes}-"]


def test_a_whole_partial_is_only_hashed(standin: HubStandin, waits: Waits, partial: Path) -> None:
    partial.parent.mkdir()
    partial.write_bytes(demo_bytes())
    fetch(standin, partial, waits)
    assert not standin.bytes_sent


@pytest.mark.parametrize("there", [b"x" * 1000, b"x" * (SIZE + 1), b"x" * SIZE])
def test_wrong_bytes_that_were_there_before_are_replaced(
    standin: HubStandin, waits: Waits, partial: Path, there: bytes
) -> None:
    partial.parent.mkdir()
    partial.write_bytes(there)
    fetch(standin, partial, waits)
    assert partial.read_bytes() == demo_bytes()


@pytest.mark.parametrize(
    ("kind", "options", "reason", "most_bytes"),
    [
        ("drop", {"at": 100_000}, "the connection broke", SIZE),
        ("drop", {"at": 100_000, "times": 20}, "the connection broke", SIZE),
        ("drop", {"at": 0, "times": 5}, "the connection broke", SIZE),
        ("reset", {"at": 100_000}, "the connection broke", SIZE + 100_000),
        ("stall", {"at": 100_000}, "nothing came for too long", SIZE),
        ("stall", {"at": 0, "times": 2}, "nothing came for too long", SIZE),
        ("short", {"at": 100_000}, "the answer has 100000 bytes", SIZE + 100_000),
        ("status", {"status": 503}, "the hub answered with status 503", SIZE),
        ("status", {"status": 429, "retry_after": "33"}, "status 429; trying again in 33 s", SIZE),
        ("html", {}, "the answer has 29 bytes", SIZE),
        ("flip", {"at": 777_777}, "came damaged; fetching it again", 2 * SIZE),
    ],
)
def test_a_fault_that_passes_costs_a_retry_and_no_more(
    standin: HubStandin,
    waits: Waits,
    partial: Path,
    kind: FaultKind,
    options: dict[str, object],
    reason: str,
    most_bytes: int,
) -> None:
    standin.order(kind, where="/resolve/", **options)
    said = fetch(standin, partial, waits)
    assert partial.read_bytes() == demo_bytes()
    assert reason in said[0]
    assert len(said) == int(str(options.get("times", 1)))
    assert standin.bytes_sent[SHA256] <= most_bytes


@pytest.mark.parametrize("kind", ["ignore_range", "no_range", "other_range"])
def test_a_range_that_is_not_answered_means_starting_over(
    standin: HubStandin, waits: Waits, partial: Path, kind: FaultKind
) -> None:
    partial.parent.mkdir()
    partial.write_bytes(demo_bytes()[:1000])
    standin.order(kind, where="/resolve/", times=10)
    fetch(standin, partial, waits)
    assert partial.read_bytes() == demo_bytes()
    assert kind == "other_range" or standin.bytes_sent[SHA256] == SIZE


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        ([Fault("status", "/resolve/", times=99)], "status 503; 0 of"),
        ([Fault("short", "/resolve/", at=10, times=99)], "the answer has 10 bytes; 0 of"),
        ([Fault("drop", "/resolve/", at=0, times=99)], f"the connection broke; 0 of {SIZE} bytes are there"),
        (
            [Fault("ignore_range", "/resolve/", times=99), Fault("drop", "/resolve/", at=70_000, times=99)],
            f"the connection broke; 70000 of {SIZE} bytes are there, and the next pull goes on from them",
        ),
    ],
    ids=["503", "short", "drop", "always anew"],
)
def test_tries_that_bring_nothing_new_end_with_what_is_there(
    standin: HubStandin, waits: Waits, partial: Path, faults: list[Fault], sentence: str
) -> None:
    standin.faults += faults
    with pytest.raises(HubUnavailableError, match=sentence):
        fetch(standin, partial, waits)
    assert 5 <= len(waits) <= 6


def test_progress_between_faults_gives_all_tries_back(
    standin: HubStandin, waits: Waits, partial: Path
) -> None:
    standin.order("drop", where="/resolve/", at=SIZE // 50, times=99)
    fetch(standin, partial, waits)
    assert set(waits) == {1}
    assert standin.bytes_sent[SHA256] == SIZE


def test_a_drip_is_a_stall_and_the_transfer_goes_on_elsewhere(
    standin: HubStandin, waits: Waits, partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "RATE_WINDOW_S", 0.3)
    drip = standin.order("drip", where="/resolve/", at=100_000)
    said = fetch(standin, partial, waits)
    assert partial.read_bytes() == demo_bytes()
    assert ("less than 1024 bytes a second came; trying again in 1 s" in said[0], len(said)) == (True, 1)
    assert standin.bytes_sent[SHA256] < SIZE + 10_000
    assert drip.times == 0


def test_a_drip_that_stays_uses_up_all_tries(
    standin: HubStandin, waits: Waits, partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "RATE_WINDOW_S", 0.1)
    standin.order("drip", where="/resolve/", at=0, times=99)
    with pytest.raises(HubUnavailableError, match=r"bytes a second came; [0-9]+ of .* the next pull goes on"):
        fetch(standin, partial, waits)
    assert waits == list(transfer.WAITS_S)
    assert partial.read_bytes() == demo_bytes()[: partial.stat().st_size]


def test_damage_that_stays_is_told_and_nothing_is_kept(
    standin: HubStandin, waits: Waits, partial: Path
) -> None:
    standin.order("flip", where="/resolve/", at=5, times=99)
    with pytest.raises(IntegrityError, match=f"came damaged twice.*{SHA256[:12]}"):
        fetch(standin, partial, waits)
    assert not partial.exists()
    assert standin.bytes_sent[SHA256] == 2 * SIZE


def test_an_encoded_body_is_refused(standin: HubStandin, waits: Waits, partial: Path) -> None:
    standin.order("encoded", where="/resolve/")
    with pytest.raises(HubUnavailableError, match="sent compressed"):
        fetch(standin, partial, waits)
    assert partial.read_bytes() == b""


def test_a_file_that_is_gone_is_not_found(standin: HubStandin, waits: Waits, partial: Path) -> None:
    standin.order("status", where="/resolve/", status=404)
    with pytest.raises(NotFoundError, match=r"has no nexa-demo-Q4_K_M\.gguf"):
        fetch(standin, partial, waits)


def test_a_gated_repository_says_where_to_ask(standin: HubStandin, waits: Waits, partial: Path) -> None:
    hub = hub_of(standin, waits)
    plan = hub.plan(HubReference("nexa/gated-GGUF"))
    with pytest.raises(HubAccessError, match="nexa/gated-GGUF is gated or private: ask for access at"):
        hub.download(plan, plan.files[0], partial)
    hub_of(standin, waits, HF_TOKEN=HUB_TOKEN).download(plan, plan.files[0], partial)
    with pytest.raises(HubAccessError, match="the token in HF_TOKEN has no access") as caught:
        hub_of(standin, waits, HF_TOKEN="hf_wrong").download(plan, plan.files[0], partial.with_name("x"))
    assert "hf_wrong" not in str(caught.value)


def test_a_token_does_not_follow_a_redirect_to_another_origin(
    standin: HubStandin, waits: Waits, partial: Path
) -> None:
    standin.is_redirecting = True
    fetch(standin, partial, waits, HF_TOKEN=HUB_TOKEN)
    assert partial.read_bytes() == demo_bytes()
    assert HUB_TOKEN in standin.tokens_seen
    assert standin.storage_tokens_seen == {""}


def test_a_signed_url_that_has_run_out_is_asked_for_again(
    standin: HubStandin, waits: Waits, partial: Path
) -> None:
    standin.is_redirecting = True
    standin.signature_uses = 1
    standin.order("drop", where="/signed/", at=100_000, times=4)
    standin.order("status", where="/signed/", status=403)
    said = fetch(standin, partial, waits)
    assert partial.read_bytes() == demo_bytes()
    assert "its storage answered with status 403" in said[0]
    assert standin.bytes_sent[SHA256] == SIZE


def test_no_error_holds_a_token_or_a_signed_url(standin: HubStandin, waits: Waits, partial: Path) -> None:
    standin.is_redirecting = True
    standin.signature_uses = 0
    with pytest.raises(HubUnavailableError) as caught:
        fetch(standin, partial, waits, HF_TOKEN=HUB_TOKEN)
    assert "its storage answered with status 403" in str(caught.value)
    assert not any(secret in repr(caught.value) for secret in (HUB_TOKEN, "sig-", "http"))
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7),
        ("", None),
        ("soon", None),
        ("Mon, 01 Jan 2024 00:00:00 +9999999999999999999999999", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", -1e8),
    ],
)
def test_retry_after_is_read_in_both_forms(text: str, seconds: float | None) -> None:
    found = retry_after_s({"retry-after": text})
    assert found == seconds or (found is not None and seconds is not None and found < seconds)
