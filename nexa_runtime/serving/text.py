"""Requests that only need a model's tokenizer or its template, and compute nothing.

Owns that they are requests like any other: admitted, with a lease, and their work in a worker thread, so that
they are no way around a tenant's limits. It knows no wire format: ``server/routes`` calls it.
"""

from collections.abc import Callable
from typing import TypeVar

from nexa_runtime.chat.messages import Conversation
from nexa_runtime.serving.answering import render_chat, render_prompt
from nexa_runtime.serving.call import Call
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.serving.loaded import Kind, LoadedModel
from nexa_runtime.serving.tenants import max_sequence_tokens
from nexa_runtime.tenancy.tenant import Tenant

ResultT = TypeVar("ResultT")


class TextService:
    """Works on texts, on the dispatcher's event loop."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def run(
        self,
        tenant: Tenant,
        call: Call,
        work: Callable[[LoadedModel], ResultT],
        *,
        model_name: str | None,
        kind: Kind | None = None,
    ) -> ResultT:
        """What ``work`` makes of the model, in a worker thread. ``kind``: what the model must be made for.

        Raises what ``work`` does, ``RequestError``, ``TenantLimitError``, ``BoxBusyError``.
        """
        request = self._dispatcher.admit(tenant, call, 0, model_name)
        with request.settled(), await self._dispatcher.lease(request, model_name, kind) as lease:
            return await self._dispatcher.prepare_in_turn(tenant, lambda: work(lease.model))

    async def render(
        self, tenant: Tenant, call: Call, conversation: Conversation, *, model_name: str | None
    ) -> str:
        """The prompt of a conversation. Raises as ``run``."""
        return await self.run(
            tenant,
            call,
            lambda model: render_prompt(model, conversation).plain,
            model_name=model_name,
            kind=Kind.CHAT,
        )

    async def count(
        self, tenant: Tenant, call: Call, conversation: Conversation, *, model_name: str | None
    ) -> int:
        """Tokens of that prompt, which may be longer than the context. Raises as ``run``."""
        return await self.run(
            tenant,
            call,
            lambda model: len(render_chat(model, conversation, max_sequence_tokens(tenant, model)).prompt),
            model_name=model_name,
            kind=Kind.CHAT,
        )
