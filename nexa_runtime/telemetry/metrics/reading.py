"""The values of one moment.

Owns that values with the same labels are added up: many tenants that share the label ``other``, many models
in a name that has none. Whoever is asked for its values puts them in; ``exposition`` writes them, on another
thread, so that nothing here may change once it is read.
"""

from collections.abc import Sequence

from nexa_runtime.telemetry.metrics.catalogue import Family
from nexa_runtime.telemetry.metrics.histogram import Histogram

Labels = tuple[str, ...]
Values = dict[Labels, float]
Histograms = dict[Labels, Histogram]


class Reading:
    """``values`` of counters and gauges and ``histograms`` by family, then by the values of its labels."""

    def __init__(self) -> None:
        self.values: dict[Family, Values] = {}
        self.histograms: dict[Family, Histograms] = {}

    def add(self, family: Family, value: float, *labels: str) -> None:
        """Put a value in."""
        assert len(labels) == len(family.labels)
        values = self.values.setdefault(family, {})
        values[labels] = values.get(labels, 0) + value

    def add_histogram(self, family: Family, histogram: Histogram, *labels: str) -> None:
        """Put what a histogram has counted so far in."""
        assert len(labels) == len(family.labels)
        _merge(self.histograms.setdefault(family, {}), labels, histogram)

    def sums(self, family: Family, by: Sequence[str]) -> Values:
        """The values of a family, added up over all labels but these."""
        sums: Values = {}
        for labels, value in self.values.get(family, {}).items():
            kept = _pick(family, labels, by)
            sums[kept] = sums.get(kept, 0) + value
        return sums

    def histogram_sums(self, family: Family, by: Sequence[str]) -> Histograms:
        """As ``sums``."""
        sums: Histograms = {}
        for labels, histogram in self.histograms.get(family, {}).items():
            _merge(sums, _pick(family, labels, by), histogram)
        return sums


def _pick(family: Family, labels: Labels, by: Sequence[str]) -> Labels:
    return tuple(labels[family.labels.index(name)] for name in by)


def _merge(into: Histograms, labels: Labels, histogram: Histogram) -> None:
    known = into.get(labels)
    if known is None:
        into[labels] = histogram.copy()
    else:
        known.add(histogram)
