"""Values of labels that clients choose, with a bound.

Owns which tenants have a label of their own. Who counts asks here, so that all metrics tell the same tenants
apart, and a sum over the label is true however many there are.
"""

OTHER = "other"
"""Whatever has no label of its own; a tenant that is called so shares it."""

MAX_TENANTS = 100
"""Tenants with labels of their own; each has some seventy lines per model in a scrape."""


class TenantLabels:
    """The first ``max_tenants`` that are counted keep their ids until the process ends."""

    def __init__(self, max_tenants: int = MAX_TENANTS) -> None:
        self._max_tenants = max_tenants
        self._known: set[str] = set()

    def label(self, tenant_id: str) -> str:
        """Its id, or ``other``."""
        if tenant_id in self._known:
            return tenant_id
        if len(self._known) >= self._max_tenants:
            return OTHER
        self._known.add(tenant_id)
        return tenant_id
