"""Names, histograms, labels, and the text of a scrape."""

import re

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from nexa_runtime.telemetry.metrics import catalogue
from nexa_runtime.telemetry.metrics.aliases import ALIASES
from nexa_runtime.telemetry.metrics.catalogue import FAMILIES, Family, Kind
from nexa_runtime.telemetry.metrics.exposition import write
from nexa_runtime.telemetry.metrics.histogram import SECONDS, Histogram
from nexa_runtime.telemetry.metrics.labels import OTHER, TenantLabels
from nexa_runtime.telemetry.metrics.reading import Reading

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
EVERY = (*FAMILIES, *(alias.family for alias in ALIASES))


def full_reading() -> Reading:
    """A value for every metric, two where it has a model."""
    reading = Reading()
    for number, family in enumerate(FAMILIES):
        for model in ("one", "two") if "model" in family.labels else ("",):
            known = {"model": model, "lane": "generation"}
            labels = [known.get(name, f"a {name}") for name in family.labels]
            if family.kind is Kind.HISTOGRAM:
                histogram = Histogram()
                histogram.observe(number)
                reading.add_histogram(family, histogram, *labels)
            else:
                reading.add(family, number, *labels)
    return reading


def values_of(text: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in parse_text(text.decode())
        for sample in family.samples
    }


def test_a_value_is_in_the_first_bucket_that_reaches_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert (histogram.counts, histogram.total, histogram.num_observed) == ([2, 2, 1], 7.5, 5)


def test_a_copy_stays_what_it_is() -> None:
    histogram = Histogram()
    histogram.observe(1)
    copy = histogram.copy()
    histogram.add(copy)
    assert (histogram.num_observed, histogram.total) == (2, 2)
    assert (copy.num_observed, copy.total) == (1, 1)


def test_times_are_told_apart_from_a_millisecond_to_ten_minutes() -> None:
    assert (SECONDS[0], SECONDS[-1]) == (0.001, 600)
    assert list(SECONDS) == sorted(set(SECONDS))


def test_tenants_beyond_the_bound_are_others() -> None:
    tenants = TenantLabels(2)
    assert [tenants.label(name) for name in ("a", "b", "c", "a", "d", "b")] == [
        "a",
        "b",
        OTHER,
        "a",
        OTHER,
        "b",
    ]


def test_values_with_one_label_are_added_up() -> None:
    reading, tenants = Reading(), TenantLabels(1)
    for number, name in enumerate(("a", "b", "c"), start=1):
        reading.add(catalogue.PROMPT_TOKENS, number, tenants.label(name), "demo")
    assert reading.values[catalogue.PROMPT_TOKENS] == {("a", "demo"): 1, (OTHER, "demo"): 5}
    assert reading.sums(catalogue.PROMPT_TOKENS, ("model",)) == {("demo",): 6}


@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.name)
def test_a_name_says_its_kind(family: Family) -> None:
    assert re.fullmatch(r"nexa_[a-z_]+|(llamacpp|vllm):[a-z0-9_]+", family.name)
    assert family.name.endswith("_total") == (family.kind is Kind.COUNTER)
    assert not re.search(r"_(ms|mb|count|sum|bucket)$", family.name)
    assert family.meaning


def test_names_are_given_once() -> None:
    names = [family.name for family in EVERY]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("has_aliases", [False, True])
def test_every_metric_is_written_with_its_kind_and_labels(has_aliases: bool) -> None:
    text, content_type = write(full_reading(), "", has_aliases=has_aliases)
    assert content_type.startswith("text/plain; version=0.0.4")
    written = {family.name: family for family in parse_text(text.decode())}
    expected = EVERY if has_aliases else FAMILIES
    process = {name for name in written if name.startswith("process_")}
    assert {"process_resident_memory_bytes", "process_open_fds"} <= process
    assert set(written) - process == {family.name.removesuffix("_total") for family in expected}
    for family in expected:
        found = written[family.name.removesuffix("_total")]
        assert found.type == family.kind.value
        assert {tuple(sorted(set(sample.labels) - {"le"})) for sample in found.samples} == {
            tuple(sorted(family.labels))
        }


def test_openmetrics_is_written_for_who_takes_it() -> None:
    text, content_type = write(full_reading(), OPENMETRICS, has_aliases=False)
    assert content_type.startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(text.decode())}  # type: ignore[no-untyped-call]
    assert {family.name.removesuffix("_total") for family in FAMILIES} <= names


@pytest.mark.parametrize("version", ["abc", "1..0", ""])
def test_who_asks_for_a_version_that_is_none_gets_the_text(version: str) -> None:
    accept = f"application/openmetrics-text; version={version}"
    text, _ = write(full_reading(), accept, has_aliases=False)
    assert b"nexa_build_info" in text


def test_an_alias_is_the_same_value() -> None:
    reading = Reading()
    for tenant, prompt, cached, completion in (("a", 10, 4, 3), ("b", 20, 0, 5)):
        reading.add(catalogue.PROMPT_TOKENS, prompt, tenant, "demo")
        reading.add(catalogue.CACHED_TOKENS, cached, tenant, "demo")
        reading.add(catalogue.COMPLETION_TOKENS, completion, tenant, "demo")
        reading.add(catalogue.ANSWERS, 2, tenant, "demo", "stop")
        reading.add(catalogue.WAITING, 1, tenant, "demo")
        first = Histogram()
        first.observe(0.5)
        reading.add_histogram(catalogue.FIRST_TOKEN, first, tenant, "demo")
    for family, value in (
        (catalogue.CELLS, 200),
        (catalogue.USED_CELLS, 150),
        (catalogue.RESIDENT_CELLS, 50),
    ):
        reading.add(family, value, "demo")
    step = Histogram()
    step.observe(0.1)
    reading.add_histogram(catalogue.STEP_TIME, step, "demo", "generation")
    reading.add_histogram(catalogue.STEP_TIME, step, "demo", "embedding")
    # Prometheus takes OpenMetrics first, where a colon is not written.
    values = values_of(write(reading, OPENMETRICS, has_aliases=True)[0])
    expected = {
        "llamacpp:prompt_tokens_total": 26,
        "llamacpp:tokens_predicted_total": 8,
        "llamacpp:requests_deferred": 2,
        "llamacpp:n_decode_total": 1,
        "llamacpp:kv_cache_usage_ratio": 0.75,
        "vllm:prompt_tokens_total": 30,
        "vllm:prefix_cache_hits_total": 4,
        "vllm:kv_cache_usage_perc": 0.5,
        "vllm:time_to_first_token_seconds_count": 2,
        "vllm:time_to_first_token_seconds_sum": 1.0,
    }
    assert {name: values[name, ("demo",)] for name in expected} == expected
    assert values["vllm:request_success_total", ("stop", "demo")] == 4
    assert values["vllm:time_to_first_token_seconds_bucket", ("0.5", "demo")] == 2


def test_what_a_client_has_named_breaks_no_line() -> None:
    reading = Reading()
    reading.add(catalogue.REFUSALS, 1, 'a"b\\c\nd', "x")
    text, _ = write(reading, "", has_aliases=False)
    assert values_of(text)["nexa_refusals_total", ("x", 'a"b\\c\nd')] == 1
