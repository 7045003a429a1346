"""Tenant ids, and limits read from a secret's values."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_runtime.errors import InvalidTenantIdError
from nexa_runtime.lora import AdapterChoice
from nexa_runtime.tenancy.tenant import (
    LIMIT_KEYS,
    TENANT_ID,
    Limits,
    check_tenant_id,
    describe,
    key_ranges,
    parse_limits,
)

SEED = {
    "NEXA_MODEL_ID": "llama-3-8b-instruct",
    "NEXA_MAX_CONTEXT_TOKENS": "8192",
    "NEXA_MAX_OUTPUT_TOKENS": "768",
    "NEXA_TEMPERATURE": "0.2",
    "TENANT_HARD_LIMIT_RPM": "120",
}
RPM_PROBLEM = "TENANT_HARD_LIMIT_RPM must be an integer from 1 to 1000000."

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
anything = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(), scalars, max_size=2)


def limits_of(values: dict[str, object]) -> Limits:
    parsed = parse_limits(values)
    assert parsed.problems == ()
    assert parsed.limits is not None
    return parsed.limits


def is_refused(key: str, value: object) -> bool:
    parsed = parse_limits({key: value})
    assert parsed.problems in ((), (f"{key} must be {key_ranges()[key]}.",))
    assert (parsed.limits is None) == bool(parsed.problems)
    return bool(parsed.problems)


@pytest.mark.parametrize("tenant_id", ["a", "0", "demo", "rut-76832940-3", "a--b", "a" * 64])
def test_an_id_of_small_letters_digits_and_inner_hyphens_is_one(tenant_id: str) -> None:
    assert check_tenant_id(tenant_id) == tenant_id


@pytest.mark.parametrize(
    "text",
    ["", "-", "-a", "a-", "A", "a_b", "a.b", "../a", "a/b", "a\n", "a\0", " a", "ä", "\u0663", "a" * 65],
)
def test_anything_else_is_no_id(text: str) -> None:
    with pytest.raises(InvalidTenantIdError) as caught:
        check_tenant_id(text)
    assert caught.value.param == "X-Tenant-Id"
    assert str(caught.value).isprintable()


def test_a_long_bad_id_is_not_repeated_in_full() -> None:
    with pytest.raises(InvalidTenantIdError) as caught:
        check_tenant_id("X" * 10_000)
    assert str(caught.value).count("X") == 64


@pytest.mark.parametrize(
    ("value", "lora"),
    [
        ("formal", (("formal", None),)),
        (" formal:0.5 , legal.v2:-1,", (("formal", 0.5), ("legal.v2", -1.0))),
        (["a:4", "b:.5", "c:0"], (("a", 4.0), ("b", 0.5), ("c", 0.0))),
    ],
)
def test_default_adapters_are_names_with_or_without_scales(value: object, lora: AdapterChoice) -> None:
    limits = limits_of({"NEXA_LORA": value})
    assert limits.lora == lora
    assert parse_limits({"NEXA_LORA": describe(limits)["NEXA_LORA"]}).limits == limits


@pytest.mark.parametrize(
    "value",
    [
        *(
            "a:",
            ":1",
            "a:x",
            "a:nan",
            "a:inf",
            "a:4.01",
            "a:-4.5",
            "a:1:2",
            "a b",
            "-a",
            "a:+1",
            "a:--1",
            "a:1e0",
        ),
        *("a,a", "a:1,a:2", "a,b,c,d,e", "x" * 65, [], [1], 7, True, {"a": 1}, "a:\u0661", ","),
    ],
)
def test_any_other_default_adapters_are_refused(value: object) -> None:
    assert is_refused("NEXA_LORA", value)


def test_the_seeds_values_are_read() -> None:
    assert limits_of(dict(SEED)) == Limits("llama-3-8b-instruct", 8192, 768, 0.2, 120)


def test_no_values_give_the_defaults() -> None:
    assert limits_of({}) == Limits()


@pytest.mark.parametrize("key", LIMIT_KEYS)
@pytest.mark.parametrize("value", ["", "  ", None])
def test_an_empty_value_counts_as_absent(key: str, value: object) -> None:
    assert limits_of({key: value}) == Limits()


@pytest.mark.parametrize("value", ["120", " 120 ", "0120", 120])
def test_an_integer_is_ascii_digits_or_a_yaml_integer(value: object) -> None:
    assert limits_of({"TENANT_HARD_LIMIT_RPM": value}).requests_per_minute == 120


@pytest.mark.parametrize(
    "value",
    [
        *("8_192", "8192.0", "\u0663", "0", "-1", "+1", "1e3", "0x10", "1000001", "9" * 5000, "many"),
        *(True, 120.0, float("nan"), 0, 1_000_001, 10**400, [120], {"a": 1}, b"120"),
    ],
)
def test_any_other_integer_is_refused(value: object) -> None:
    assert parse_limits({"TENANT_HARD_LIMIT_RPM": value}).problems == (RPM_PROBLEM,)


@pytest.mark.parametrize(
    ("value", "expected"), [("0", 0), ("2", 2), (" .5 ", 0.5), ("1.", 1), (1, 1), (0.7, 0.7)]
)
def test_a_number_may_have_a_fraction(value: object, expected: float) -> None:
    temperature = limits_of({"NEXA_TEMPERATURE": value}).temperature
    assert temperature == expected
    assert isinstance(temperature, float)


@pytest.mark.parametrize(
    "value",
    [
        *("nan", "inf", "-inf", "2.01", "-0.1", "1e0", "1,5", "1_0", "\u0661.\u0665", "."),
        *(float("nan"), float("inf"), True, 10**400, [0.5]),
    ],
)
def test_nan_infinity_and_numbers_out_of_range_are_refused(value: object) -> None:
    assert is_refused("NEXA_TEMPERATURE", value)


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("NEXA_MAX_CONCURRENCY", ("1", "128"), ("0", "129")),
        ("NEXA_GUARANTEED_SLOTS", ("0", "128"), ("-1", "129")),
        ("NEXA_MAX_QUEUE", ("0", "1000000"), ("1000001",)),
        ("NEXA_QUEUE_TIMEOUT_S", ("0.001", "86400"), ("0", "0.0", "86400.1")),
        ("NEXA_WEIGHT", ("0.01", "100"), ("0", "0.009", "100.1")),
        ("TENANT_HARD_LIMIT_TPM", ("1", "1000000000"), ("0", "1000000001")),
        ("NEXA_MAX_CONTEXT_TOKENS", ("1", "10000000"), ("0", "10000001")),
    ],
)
def test_ranges_hold_at_both_ends(key: str, good: tuple[str, ...], bad: tuple[str, ...]) -> None:
    assert not any(is_refused(key, value) for value in good)
    assert all(is_refused(key, value) for value in bad)


@pytest.mark.parametrize("value", ["true", "TRUE", " Yes ", "1", True, 1])
def test_yes_can_be_said_in_several_ways(value: object) -> None:
    assert limits_of({"NEXA_LOG_PROMPTS": value}).logs_prompts


@pytest.mark.parametrize("value", ["false", "No", "0", False, 0])
def test_no_can_be_said_in_several_ways(value: object) -> None:
    assert not limits_of({"NEXA_LOG_PROMPTS": value}).logs_prompts


@pytest.mark.parametrize("value", ["on", "2", 2, 1.0, [True]])
def test_what_is_neither_yes_nor_no_is_refused(value: object) -> None:
    assert is_refused("NEXA_LOG_PROMPTS", value)


@pytest.mark.parametrize("value", ["a, b,,a ", ["a", " b", "a"]])
def test_names_come_with_commas_or_as_a_list(value: object) -> None:
    assert limits_of({"NEXA_ALLOWED_MODELS": value}).allowed_models == ("a", "b")


@pytest.mark.parametrize("value", [",", " , ", [], [""], ["a", 1], {"a": "b"}, 7, "a\0b", "x" * 201])
def test_a_list_of_models_that_names_none_never_means_all(value: object) -> None:
    assert is_refused("NEXA_ALLOWED_MODELS", value)


def test_digests_are_kept_as_bytes_and_stay_out_of_the_repr() -> None:
    limits = limits_of({"NEXA_API_KEY_SHA256": f"{'ab' * 32}, {'CD' * 32}"})
    assert limits.key_digests == (b"\xab" * 32, b"\xcd" * 32)
    assert "key_digests" not in repr(limits)
    assert "xab" not in repr(limits)


@pytest.mark.parametrize("value", ["ab", "g" * 64, "ab " * 32, f"{'ab' * 32};{'cd' * 32}", "nexa_a_b", 5])
def test_what_is_no_digest_is_refused(value: object) -> None:
    assert is_refused("NEXA_API_KEY_SHA256", value)


def test_problems_name_every_bad_key_and_never_a_value() -> None:
    parsed = parse_limits({key: ["hunter2", 5] for key in LIMIT_KEYS})
    assert [problem.split()[0] for problem in parsed.problems] == list(LIMIT_KEYS)
    assert "hunter2" not in "".join(parsed.problems)
    assert parsed.limits is None


def test_unknown_keys_are_named_in_order_and_stop_nothing() -> None:
    parsed = parse_limits({**SEED, "owner": "x", "NEXA_MAX_OUTPUT": "5", "TENANT_X": None})
    assert parsed.unknown_keys == ("NEXA_MAX_OUTPUT", "TENANT_X", "owner")
    assert parsed.limits is not None


def test_the_admin_sees_what_is_in_force_but_no_digest() -> None:
    described = describe(limits_of({**SEED, "NEXA_API_KEY_SHA256": ["ab" * 32, "cd" * 32]}))
    assert tuple(described) == LIMIT_KEYS
    assert described["NEXA_MAX_OUTPUT_TOKENS"] == 768
    assert described["NEXA_MAX_QUEUE"] == 256
    assert described["NEXA_API_KEY_SHA256"] == "2 digests"
    assert describe(limits_of({"NEXA_API_KEY_SHA256": "ab" * 32}))["NEXA_API_KEY_SHA256"] == "1 digest"
    assert describe(Limits())["NEXA_API_KEY_SHA256"] is None
    assert describe(limits_of({"NEXA_ALLOWED_MODELS": "a,b"}))["NEXA_ALLOWED_MODELS"] == ["a", "b"]


def test_every_key_has_a_range() -> None:
    assert tuple(key_ranges()) == LIMIT_KEYS
    assert all(key_ranges().values())


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(LIMIT_KEYS) | st.text(), anything, max_size=8))
def test_any_mapping_gives_either_limits_or_problems(values: dict[str, object]) -> None:
    parsed = parse_limits(values)
    assert (parsed.limits is None) == bool(parsed.problems)
    assert set(values) >= {key for key in parsed.unknown_keys if len(key) < 64}
    if parsed.limits is not None:
        assert tuple(describe(parsed.limits)) == LIMIT_KEYS


@settings(deadline=None)
@given(st.from_regex(TENANT_ID, fullmatch=True))
def test_what_the_pattern_makes_is_an_id_unless_a_line_ends_it(text: str) -> None:
    if text.endswith("\n"):
        with pytest.raises(InvalidTenantIdError):
            check_tenant_id(text)
    else:
        assert check_tenant_id(text) == text
