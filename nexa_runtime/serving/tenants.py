"""A tenant as the engine sees it: its share of the work, and the namespace of its prefixes.

Of a tenant only these travel down. ``generation``, ``embedding`` and ``dispatcher`` call it.
"""

from collections.abc import Sequence

from nexa_runtime.engine.sequence import TenantShare
from nexa_runtime.serving.loaded import LoadedModel
from nexa_runtime.tenancy.tenant import Limits, Tenant

LOCAL_TENANT = Tenant("local", Limits(), "default", "")
"""Whoever sits in front of the box itself."""

PUBLIC_TENANT_ID = "(public)"
"""Whose the public prefixes are; no id of a tenant looks like that."""

_FLOOR_PART = 4
"""What others may not evict of a tenant: this part of the cells that its guaranteed slots stand for."""


def share_of(tenant: Tenant, model: LoadedModel) -> TenantShare:
    """Its right to the engine of one model."""
    limits = tenant.limits
    guaranteed_slots = min(limits.guaranteed_slots, limits.max_concurrency or model.slots, model.slots)
    return TenantShare(
        tenant.id,
        weight=limits.weight,
        guaranteed_slots=guaranteed_slots,
        max_slots=limits.max_concurrency,
        cache_floor_cells=guaranteed_slots * model.num_cells // (_FLOOR_PART * model.slots),
    )


def namespace_of(tenant: Tenant, model: LoadedModel) -> str:
    """Prefixes are shared inside it, among requests with the same adapters, and nowhere else."""
    return f"{tenant.id}/{tenant.era}/{model.id}"


def max_sequence_tokens(tenant: Tenant, model: LoadedModel) -> int:
    """Prompt and answer of one sequence; a cap above the model's context is lowered to it."""
    return min(model.max_sequence_tokens, tenant.limits.max_context_tokens or model.max_sequence_tokens)


def is_allowed(tenant: Tenant, names: Sequence[str]) -> bool:
    """Whether a tenant may use a model that goes by these names."""
    allowed = tenant.limits.allowed_models
    return allowed is None or bool(set(names) & set(allowed))
