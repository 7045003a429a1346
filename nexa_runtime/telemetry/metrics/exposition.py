"""A reading as Prometheus wants it.

Owns the use of ``prometheus_client``: its formats, which of them a scraper takes, and what it knows of the
process. It is imported with the first scrape, in that scrape's thread.
"""

import time
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from nexa_runtime.telemetry.metrics.aliases import ALIASES
from nexa_runtime.telemetry.metrics.catalogue import FAMILIES, Family, Kind
from nexa_runtime.telemetry.metrics.histogram import Histogram
from nexa_runtime.telemetry.metrics.reading import Labels, Reading


def write(reading: Reading, accept: str) -> tuple[bytes, str]:
    """The text of a scrape and its content type. ``accept``: the header of whoever asks."""
    encode, content_type = choose_encoder(accept)
    return encode(_Scrape(reading)), content_type


class _Scrape(Collector):
    """All families of one scrape, then what is known of the process."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._process = ProcessCollector(registry=None)

    def collect(self) -> Iterator[Metric]:
        """Called once."""
        for metric in (*self._families(), *self._process.collect()):
            time.sleep(0)  # lets go of the GIL: tokens come first
            yield metric

    def _families(self) -> Iterator[Metric]:
        reading = self._reading
        for family in FAMILIES:
            is_histogram = family.kind is Kind.HISTOGRAM
            yield _metric(family, reading.histograms.get(family, {}) if is_histogram else reading.values.get(family, {}))
        for alias in ALIASES:
            yield _metric(alias.family, alias.read(reading))


def _metric(family: Family, values: Mapping[Labels, float | Histogram]) -> Metric:
    # prometheus_client writes the suffix of counters itself.
    metric = Metric(family.name.removesuffix("_total"), family.meaning.replace("`", ""), family.kind.value)
    for labels, value in sorted(values.items(), key=lambda item: item[0]):
        named = dict(zip(family.labels, labels, strict=True))
        if isinstance(value, Histogram):
            _add_histogram(metric, named, value)
        else:
            metric.add_sample(family.name, named, value)
    return metric


def _add_histogram(metric: Metric, named: dict[str, str], histogram: Histogram) -> None:
    num_below = 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        num_below += count
        metric.add_sample(f"{metric.name}_bucket", named | {"le": floatToGoString(bound)}, num_below)
    metric.add_sample(f"{metric.name}_count", named, num_below)
    metric.add_sample(f"{metric.name}_sum", named, histogram.total)
