"""Nothing is ignored silently: unknown fields are named in a header and in the log."""

from collections.abc import Sequence

from nexa_runtime.telemetry import get_logger

_MAX_HEADER = 500

_log = get_logger("server")


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """``x-nexa-ignored`` for these field names; none without any."""
    if not names:
        return {}
    _log.info("ignored_fields", fields=list(names[:20]))
    return {"x-nexa-ignored": _header_list(names)}


def _header_list(names: Sequence[str]) -> str:
    """Names for a header: what is not plain ASCII becomes ``?``, and a long list is cut.

    A header's value has no blanks at its ends, and neither has a name here; one of blanks is ``""``.
    """
    text = ", ".join(name.strip(" ") or '""' for name in names).encode("ascii", "replace").decode()
    printable = "".join(char if char.isprintable() else "?" for char in text)
    return printable if len(printable) <= _MAX_HEADER else printable[:_MAX_HEADER] + "..."
