"""What a page of this server may load: nothing.

Owns the headers of such a page. Style and script stand in the page itself, and its policy names them by their
hashes. ``pages`` and ``routes/console`` call it.
"""

import base64
import hashlib
from collections.abc import Mapping


def policy_headers(style: str, script: str | None) -> Mapping[str, str]:
    """For a page with this style in it, and with this script, which may ask this server only."""
    policy = f"default-src 'none'; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    if script is not None:
        policy += f"; script-src {_hash(script)}; connect-src 'self'"
    return {
        "content-security-policy": f"{policy}; frame-ancestors 'none'",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
