"""``/admin/models/pull`` on the wire: the request. ``routes/admin`` calls it."""

from collections.abc import Mapping

from pydantic import Field

from nexa_runtime.server.protocol.parameters import Support
from nexa_runtime.server.protocol.wire import WireModel

FIELDS: Mapping[str, Support] = {"model": Support.HONOURED}


class PullRequest(WireModel):
    """A body of ``/admin/models/pull``. ``model``: a catalog's name, or ``org/repo[:QUANT][@revision]``."""

    model: str = Field(min_length=1)
