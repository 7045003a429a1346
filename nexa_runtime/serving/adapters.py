"""Which of a model's adapters a request is answered with.

Owns the way from what a client or its tenant asks for to the set that the engine computes with, and the
sentences about names that the model has not. ``generation_service`` calls it.
"""

from nexa_runtime.errors import InvalidRequestError
from nexa_runtime.lora import AdapterChoice, AdapterSet, adapter_set
from nexa_runtime.serving.loaded import LoadedModel
from nexa_runtime.tenancy.tenant import Tenant


def adapters_for(tenant: Tenant, model: LoadedModel, asked: AdapterChoice | None) -> AdapterSet:
    """What the client asked for, if only for none; else the tenant's default. Raises ``InvalidRequestError``.

    A default that the model has not is refused too: an answer without it is not what the tenant is to get.
    """
    if asked is not None:
        for index, (name, _) in enumerate(asked):
            if name not in model.adapters:
                param = f"lora[{index}].name"
                raise InvalidRequestError(f"{param}: {_lacks(model, name)}.", param=param)
        return _scaled(model, asked)
    default = tenant.limits.lora or ()
    for name, _ in default:
        if name not in model.adapters:
            reason = "which NEXA_LORA makes this tenant's default; [] asks for none"
            raise InvalidRequestError(f"lora: {_lacks(model, name)}, {reason}.", param="lora")
    return _scaled(model, default)


def _scaled(model: LoadedModel, choice: AdapterChoice) -> AdapterSet:
    return adapter_set({name: model.adapters[name] if scale is None else scale for name, scale in choice})


def _lacks(model: LoadedModel, name: str) -> str:
    there = ", ".join(model.adapters) or "none"
    return f"the model {model.id} has no adapter {name!r} (it has {there})"
