"""A reading as Prometheus wants it.

Owns the use of ``prometheus_client``: its formats, which of them a scraper takes, and what it knows of the
process. It is imported with the first scrape, in that scrape's thread.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from prometheus_client import Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from nexa_runtime.telemetry.metrics.aliases import ALIASES
from nexa_runtime.telemetry.metrics.catalogue import FAMILIES, Family, Kind
from nexa_runtime.telemetry.metrics.histogram import Histogram
from nexa_runtime.telemetry.metrics.reading import Labels, Reading

_RUN = 64
_PAUSE_S = 1e-4
"""Lines that are written at once, half a millisecond's, and the pause behind them in which the GIL is free:
without, tokens would wait for five milliseconds at a time.
"""


def write(reading: Reading, accept: str, *, has_aliases: bool) -> tuple[bytes, str]:
    """The text of a scrape and its content type. ``accept``: the header of whoever asks."""
    # As OpenMetrics prometheus_client would write an alias with an underscore for its colon.
    try:
        encode, content_type = choose_encoder("" if has_aliases else accept)
    except (TypeError, ValueError):  # it compares versions, and fails on one that is no number
        encode, content_type = choose_encoder("")
    return encode(_Scrape(reading, has_aliases=has_aliases)), content_type


class _Scrape(Collector):
    """All families of one scrape, then what is known of the process."""

    def __init__(self, reading: Reading, *, has_aliases: bool) -> None:
        self._reading = reading
        self._aliases = ALIASES if has_aliases else ()
        self._process = ProcessCollector(registry=None)

    def collect(self) -> Iterator[Metric]:
        """Called once."""
        reading = self._reading
        for family in FAMILIES:
            if family.kind is Kind.HISTOGRAM:
                yield _metric(family, reading.histograms.get(family, {}))
            else:
                yield _metric(family, reading.values.get(family, {}))
        for alias in self._aliases:
            yield _metric(alias.family, alias.read(reading))
        yield from self._process.collect()


def _metric(family: Family, values: Mapping[Labels, float | Histogram]) -> Metric:
    # prometheus_client writes the suffix of counters itself.
    metric = Metric(family.name.removesuffix("_total"), family.meaning.replace("`", ""), family.kind.value)
    # It is iterated once; a list of all would be made without a pause.
    metric.samples = cast(list[Sample], _unhurried(_samples(family, values)))
    return metric


def _unhurried(samples: Iterable[Sample]) -> Iterator[Sample]:
    """The same, with pauses."""
    for number, sample in enumerate(samples, start=1):
        if not number % _RUN:
            time.sleep(_PAUSE_S)
        yield sample


def _samples(family: Family, values: Mapping[Labels, float | Histogram]) -> Iterator[Sample]:
    for labels, value in sorted(values.items(), key=lambda item: item[0]):
        named = dict(zip(family.labels, labels, strict=True))
        if isinstance(value, Histogram):
            yield from _histogram_samples(family.name, named, value)
        else:
            yield Sample(family.name, named, value)


def _histogram_samples(name: str, named: dict[str, str], histogram: Histogram) -> Iterator[Sample]:
    num_below = 0
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        num_below += count
        yield Sample(f"{name}_bucket", named | {"le": str(bound)}, num_below)
    yield Sample(f"{name}_count", named, num_below)
    yield Sample(f"{name}_sum", named, histogram.total)
