"""The README's table of parameters: each field of each body, and what becomes of it.

It is made of ``server/protocol/endpoints``, and stands in the README between two marks; a test compares both.
Run by ``scripts/api_table`` after a field has come or gone.
"""

from collections.abc import Sequence
from pathlib import Path

from nexa_runtime.server.protocol.endpoints import ENDPOINTS, Endpoint
from nexa_runtime.server.protocol.parameters import Support

README = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- scripts/api_table writes this table -->\n"
END = "<!-- end of the table -->\n"


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


def written(readme: str) -> str:
    """A README with its table as it must be."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
