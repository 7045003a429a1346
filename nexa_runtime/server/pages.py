"""The API's document as a page to read, and as one to try.

Owns how the pages are made and what they may load: nothing. Style and script stand in the page itself, and
its policy names them by their hashes. Both pages are made once; ``routes/docs`` serves them. What they look
like is in ``data/docs.*``.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment

from nexa_runtime.server.openapi import document

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
    policy = f"default-src 'none'; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    if is_live:
        policy += f"; script-src {_hash(script)}; connect-src 'self'"
    return html, {
        "content-security-policy": f"{policy}; frame-ancestors 'none'",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


def _resolve(described: Mapping[str, Any], part: Mapping[str, Any]) -> Any:
    """What a part of the document refers to, or the part itself."""
    if "$ref" not in part:
        return part
    found: Any = described
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
