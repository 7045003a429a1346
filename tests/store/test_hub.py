"""What is asked of a hub, and every fault on the way of a file."""

from pathlib import Path

import pytest

from nexa_runtime.errors import (
    HubAccessError,
    HubUnavailableError,
    IntegrityError,
    NotFoundError,
    StoreError,
    UsageError,
)
from nexa_runtime.store.catalog import HubReference, ModelSpec
from nexa_runtime.store.hub import choose_files
from nexa_runtime.store.names import quant_of
from tests.hub_models import DEMO, SHA256, SIZE, Waits, hub_of, plan_of, split_files
from tests.hub_standin import HUB_TOKEN, Fault, HubStandin


def test_a_plan_names_the_commit_the_default_quant_and_what_its_file_must_be(standin: HubStandin) -> None:
    plan = plan_of(standin)
    assert plan.revision == standin.repos[DEMO].names["main"]
    assert (plan.quant, plan.is_default, plan.size_bytes) == ("Q4_K_M", True, SIZE)
    assert [(file.path, file.sha256) for file in plan.files] == [("nexa-demo-Q4_K_M.gguf", SHA256)]


@pytest.mark.parametrize(
    ("reference", "paths"),
    [
        (HubReference(DEMO, quant="q8_0"), ["nexa-demo-Q8_0.gguf"]),
        (HubReference(DEMO, revision="v1"), ["nexa-demo-Q8_0.gguf"]),
        (HubReference(DEMO, file="nexa-demo-Q8_0.gguf"), ["nexa-demo-Q8_0.gguf"]),
        (HubReference("nexa/many-GGUF"), ["demo.Q8_0.gguf"]),
        (HubReference("nexa/many-GGUF", quant="IQ2_XS"), ["demo.IQ2_XS.gguf"]),
        (HubReference("nexa/split-GGUF"), [f"Q4_K_M/{name}" for name in split_files()]),
        (ModelSpec(name="demo", repo=DEMO, quant="Q8_0"), ["nexa-demo-Q8_0.gguf"]),
    ],
)
def test_a_reference_leads_to_its_files(
    standin: HubStandin, waits: Waits, reference: HubReference | ModelSpec, paths: list[str]
) -> None:
    assert [file.path for file in hub_of(standin, waits).plan(reference).files] == paths


def test_files_are_chosen_as_llama_cpp_chooses_them() -> None:
    paths = [
        "b-Q4_0.gguf",
        "b-q5_k_m.GGUF",
        "mmproj-b-Q8_0.gguf",
        "imatrix-Q8_0.gguf",
        "c-IQ3_M-x.gguf",
        "a\x1b[2J-F16.gguf",
        "a.txt",
    ]

    def chosen(quant: str | None = None, file: str | None = None) -> tuple[str, ...]:
        return choose_files("o/r", paths, quant=quant, file=file)

    assert chosen() == ("b-Q4_0.gguf",)
    assert chosen("Q5_K_M") == ("b-q5_k_m.GGUF",)
    assert chosen("iq3_m") == ("c-IQ3_M-x.gguf",)
    assert chosen(file="mmproj-b-Q8_0.gguf") == ("mmproj-b-Q8_0.gguf",)
    with pytest.raises(NotFoundError, match=r'o/r has no "Q8_0"; there is: Q4_0, Q5_K_M, IQ3_M\.'):
        chosen("Q8_0")
    with pytest.raises(NotFoundError, match=r'no file "x\.gguf"; there is: Q4_0'):
        chosen(file="x.gguf")


def test_a_split_model_that_lacks_a_part_is_not_there() -> None:
    with pytest.raises(NotFoundError, match=r"lacks m-00002-of-00002\.gguf"):
        choose_files("o/r", ["m-00001-of-00002.gguf"], quant=None, file=None)


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("m-Q4_K_M.gguf", "Q4_K_M"),
        ("m.q8_0.gguf", "Q8_0"),
        ("m-UD-Q4_K_XL-00001-of-00002.gguf", "UD-Q4_K_XL"),
        ("BF16/m-BF16-00001-of-00002.gguf", "BF16"),
        ("m-mxfp4.gguf", "MXFP4"),
        ("Qwen2-7B.gguf", None),
    ],
)
def test_a_quant_is_read_from_a_path(path: str, quant: str | None) -> None:
    assert quant_of(path) == quant


@pytest.mark.parametrize(
    ("reference", "error", "sentence"),
    [
        (HubReference("nexa/nothing"), HubAccessError, "does not exist, or is private: ask for access at"),
        (HubReference("nexa/private-GGUF"), HubAccessError, "and set HF_TOKEN"),
        (HubReference("nexa/no-gguf"), NotFoundError, "has no GGUF file"),
        (HubReference(DEMO, revision="v9"), NotFoundError, 'has no revision "v9"'),
        (HubReference(DEMO, quant="Q2_K"), NotFoundError, "there is: Q4_K_M, Q8_0"),
        (HubReference("nexa/a/b"), UsageError, "org/name"),
        (ModelSpec(name="demo", repo=DEMO, sha256="0" * 64), IntegrityError, "The catalog pins"),
    ],
)
def test_what_cannot_be_planned_is_told_in_a_sentence(
    standin: HubStandin,
    waits: Waits,
    reference: HubReference | ModelSpec,
    error: type[StoreError],
    sentence: str,
) -> None:
    with pytest.raises(error, match=sentence):
        hub_of(standin, waits).plan(reference)
    assert waits == []


def test_a_token_opens_private_repositories_and_tells_what_is_not_there(
    standin: HubStandin, waits: Waits
) -> None:
    hub = hub_of(standin, waits, HF_TOKEN=HUB_TOKEN)
    assert hub.plan(HubReference("nexa/private-GGUF")).quant == "Q4_K_M"
    with pytest.raises(NotFoundError, match=r"There is no repository nexa/nothing at http://127\.0\.0\.1"):
        hub.plan(HubReference("nexa/nothing"))


def test_without_a_token_the_one_in_the_users_home_is_not_sent(
    standin: HubStandin, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_of_the_user")
    hub_of(standin, waits).plan(HubReference(DEMO))
    assert standin.tokens_seen == {""}


def test_offline_nothing_is_asked(standin: HubStandin, waits: Waits, partial: Path) -> None:
    plan = plan_of(standin)
    standin.requests.clear()
    hub = hub_of(standin, waits, HF_HUB_OFFLINE="1")
    with pytest.raises(HubUnavailableError, match="HF_HUB_OFFLINE is set"):
        hub.plan(HubReference(DEMO))
    with pytest.raises(HubUnavailableError, match="HF_HUB_OFFLINE is set"):
        hub.download(plan, plan.files[0], partial)
    assert not standin.requests


@pytest.mark.parametrize("fault", [Fault("status", status=429, retry_after="7"), Fault("html", times=2)])
def test_a_passing_fault_does_not_stop_a_plan(standin: HubStandin, waits: Waits, fault: Fault) -> None:
    standin.faults.append(fault)
    said: list[str] = []
    assert hub_of(standin, waits).plan(HubReference(DEMO), on_retry=said.append).quant == "Q4_K_M"
    assert waits == ([7] if fault.kind == "status" else [1, 2])
    assert len(said) == len(waits)


def test_a_hub_that_stays_away_is_given_up_after_five_more_tries(waits: Waits) -> None:
    with HubStandin() as gone:
        pass
    with pytest.raises(
        HubUnavailableError, match=f"The hub could not be asked for {DEMO}: it cannot be reached"
    ):
        hub_of(gone, waits).plan(HubReference(DEMO))
    assert waits == [1, 2, 4, 8, 16]


def test_a_commit_other_than_the_pinned_one_is_refused(standin: HubStandin, waits: Waits) -> None:
    repo = standin.repos[DEMO]
    pinned = "a" * 40
    repo.names[pinned] = repo.names["main"]
    with pytest.raises(IntegrityError, match="another commit"):
        hub_of(standin, waits).plan(HubReference(DEMO, revision=pinned))
