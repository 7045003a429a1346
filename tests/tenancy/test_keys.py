"""Tenant keys: their form, and comparing digests."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_runtime.errors import InvalidTenantIdError
from nexa_runtime.tenancy.keys import create_key, digest, matches, tenant_of

SECRET = "A" * 43

tenant_ids = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?", fullmatch=True)


@settings(deadline=None)
@given(tenant_ids)
def test_a_new_key_names_its_tenant_and_matches_its_digest(tenant_id: str) -> None:
    key = create_key(tenant_id)
    assert tenant_of(key) == tenant_id
    assert matches(key, [digest(key)])
    assert len(key) == len(f"nexa_{tenant_id}_") + 43


def test_no_two_keys_are_alike() -> None:
    assert len({create_key("demo") for _ in range(100)}) == 100


def test_no_key_is_made_for_what_is_no_tenant() -> None:
    with pytest.raises(InvalidTenantIdError):
        create_key("a_b")


@pytest.mark.parametrize("secret", ["_" * 43, "-" * 43, "_a" * 21 + "_"])
def test_a_secret_may_begin_with_an_underscore(secret: str) -> None:
    assert tenant_of(f"nexa_demo_{secret}") == "demo"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nexa_demo_",
        f"nexa__{SECRET}",
        f"nexa_-demo_{SECRET}",
        f"nexa_demo-_{SECRET}",
        f"nexa_Demo_{SECRET}",
        f"nexa_{'a' * 65}_{SECRET}",
        f"nexa_demo_{SECRET[1:]}",
        f"nexa_demo_{SECRET}A",
        f"nexa_demo_{SECRET}\n",
        f" nexa_demo_{SECRET}",
        f"nexa_demo_{SECRET[1:]}+",
        f"nexa_dem\u0661_{SECRET}",
        f"NEXA_demo_{SECRET}",
        "sk-proj-0123456789",
    ],
)
def test_a_text_of_another_form_names_no_tenant(text: str) -> None:
    assert tenant_of(text) is None


@settings(deadline=None)
@given(st.text())
def test_any_text_can_be_asked_about(text: str) -> None:
    assert tenant_of(text) is None
    assert not matches(text, [digest(text + "x")])


def test_a_digest_is_the_sha256_that_other_tools_compute() -> None:
    assert digest("clé") == hashlib.sha256("clé".encode()).digest()


def test_lone_surrogates_make_a_wrong_key_not_an_error() -> None:
    assert not matches("\ud800\udfff", [digest("x")])


def test_any_of_several_digests_may_match_and_none_matches_nothing() -> None:
    digests = [digest("old"), digest("new")]
    assert matches("old", digests)
    assert matches("new", iter(digests))
    assert not matches("other", digests)
    assert not matches("old", [])


def test_a_digest_of_another_length_never_matches() -> None:
    assert not matches("old", [b"", digest("old")[:31], digest("old") + b"\0"])
