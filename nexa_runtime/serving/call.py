"""What the server knows of one HTTP request, for the layers below.

``server`` makes one per request; ``cli`` has none to speak of. It owns no behaviour.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Call:
    """``request_id``: what the client gets as ``x-request-id``. ``endpoint``: the path. ``key_id``: names the
    key that was shown, and is no part of it. ``is_patient``: whether it waits while its model is loaded.
    ``on_admitted``: called when it is let in; from then on it will leave a record.
    ``body``: what the client sent, if its tenant lets prompts be logged.
    """

    request_id: str = ""
    endpoint: str = ""
    key_id: str | None = None
    is_patient: bool = True
    on_admitted: Callable[[], None] = lambda: None
    body: Mapping[str, object] | None = None
