"""The README's tables that are made of code: of parameters, and of metrics.

Each field of each body and what becomes of it are in ``server/protocol/endpoints``, metrics and their aliases
in ``telemetry/metrics``. A table stands in the README between two marks; a test compares both. Run by
``scripts/api_table`` after a field or a metric has come or gone.
"""

from collections.abc import Sequence

from nexa_runtime.server.protocol.endpoints import ENDPOINTS, Endpoint
from nexa_runtime.server.protocol.parameters import Support
from nexa_runtime.telemetry.metrics.aliases import ALIASES
from nexa_runtime.telemetry.metrics.catalogue import FAMILIES
from scripts.readme import README, replaced

BEGIN = "<!-- scripts/api_table writes this table -->\n"
END = "<!-- end of the table -->\n"
METRICS_BEGIN = "<!-- scripts/api_table writes this table of metrics -->\n"
METRICS_END = "<!-- end of the table of metrics -->\n"


def table(endpoints: Sequence[Endpoint] = ENDPOINTS) -> str:
    """A row for each body and each thing that may become of its fields."""
    takers: dict[object, list[Endpoint]] = {}
    for endpoint in endpoints:
        takers.setdefault(endpoint.request, []).append(endpoint)
    rows = ["| endpoint | | parameters |", "|---|---|---|"]
    for same in takers.values():
        paths = ", ".join(f"`{endpoint.path}`" for endpoint in same)
        for support in Support:
            if names := same[0].of(support):
                rows.append(f"| {paths} | {support.value} | {', '.join(f'`{name}`' for name in names)} |")
    return "".join(f"{row}\n" for row in rows)


def metrics_table() -> str:
    """A row for each metric, ours first."""
    rows = ["| metric | type | labels | what |", "|---|---|---|---|"]
    for family in (*FAMILIES, *(alias.family for alias in ALIASES)):
        cells = (f"`{family.name}`", family.kind.value, ", ".join(family.labels), family.meaning)
        rows.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "".join(f"{row}\n" for row in rows)


def written(readme: str) -> str:
    """A README with its tables as they must be."""
    readme = replaced(readme, BEGIN, table(), END)
    return replaced(readme, METRICS_BEGIN, metrics_table(), METRICS_END)


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
