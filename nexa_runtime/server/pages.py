"""The API's document as a page to read, and as one to try.

Owns how the pages are made, once each; what they look like is in ``data/docs.*``. ``routes/docs`` sends them.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment

from nexa_runtime.server.openapi import document
from nexa_runtime.server.policy import policy_headers

_DATA = files("nexa_runtime") / "data"


@cache
def page(*, is_live: bool) -> tuple[str, Mapping[str, str]]:
    """HTML and its headers. ``is_live``: requests can be sent from it, to this server only."""
    style, script = (_DATA.joinpath(name).read_text("utf-8") for name in ("docs.css", "docs.js"))
    described = document()
    environment = Environment(autoescape=True)
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    environment.filters["resolve"] = lambda part: _resolve(described, part)
    template = environment.from_string(_DATA.joinpath("docs.html").read_text("utf-8"))
    html = template.render(document=described, style=style, script=script, is_live=is_live)
    return html, policy_headers(style, script if is_live else None)


def _resolve(described: Mapping[str, Any], part: Mapping[str, Any]) -> Any:
    """What a part of the document refers to, or the part itself."""
    if "$ref" not in part:
        return part
    found: Any = described
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found
