"""How a person names the moment from which on usage is summed up.

Owns the one reading of ``since``, for ``GET /admin/usage`` and ``nexa-runtime usage summary``; each has a
sentence of its own for what cannot be read.
"""

import re
from datetime import UTC, datetime, timedelta

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_since(text: str, now: datetime) -> datetime:
    """A moment in UTC, from ISO 8601 (UTC, unless it says otherwise) or how long ago it was, like ``24h``.

    Raises ``ValueError``.
    """
    try:
        if ago := re.fullmatch(r"([0-9]{1,6})([smhdw])", text.strip()):
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        moment = datetime.fromisoformat(text.strip())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(str(error)) from None
