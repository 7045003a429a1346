"""structlog, without what it would import for drawing tracebacks: that is a twentieth of a start.

Owns the first import of it. ``logging`` alone uses it.

Deliberate: while structlog is imported, rich is said not to be there. ``structlog.dev`` and its tracebacks,
which nothing here uses, go without it then.
"""

import sys

_rich = sys.modules.get("rich")
sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
finally:
    if _rich is None:
        del sys.modules["rich"]
    else:
        sys.modules["rich"] = _rich

__all__ = ["structlog"]
