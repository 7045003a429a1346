"""A request that was let in, until it has left its one record.

Owns that what it reserved is settled and what it used is recorded exactly once, however it ends, with the
same numbers in both. ``dispatcher`` makes it; whoever runs the request settles it. Lives on the event loop.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from nexa_runtime.errors import ClientDisconnectedError, NexaError
from nexa_runtime.lora import NO_ADAPTERS, AdapterSet, adapters_text
from nexa_runtime.serving.call import Call
from nexa_runtime.telemetry import get_logger
from nexa_runtime.tenancy.admission import Ticket
from nexa_runtime.tenancy.tenant import Tenant
from nexa_runtime.usage import Recorder, UsageRecord

_MAX_NAME_CHARS = 200

_log = get_logger("serving")


@dataclass(slots=True)
class Used:
    """What a request has used, as ``UsageRecord`` has it. ``first_text_at``: by the monotonic clock."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str | None = None
    queue_s: float | None = None
    first_text_at: float | None = None


@dataclass(eq=False)
class OpenRequest:
    """``settle`` it once, whatever happens; again does nothing. ``model_name``: what the client asked for,
    until there is a lease.
    """

    call: Call
    model_name: str
    _ticket: Ticket
    _recorder: Recorder
    _status_of: Callable[[Exception], int]
    adapters: AdapterSet = NO_ADAPTERS
    _created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _admitted_at: float = field(default_factory=time.monotonic)
    _is_settled: bool = False

    @property
    def tenant(self) -> Tenant:
        """Who asks."""
        return self._ticket.tenant

    def reserve(self, num_tokens: int) -> None:
        """Set aside the most that it can use. Raises ``TokenRateError``."""
        self._ticket.reserve(num_tokens)

    @contextmanager
    def settled(self) -> Iterator[Used]:
        """Settles it at the end, with what was written into ``Used`` and what was raised."""
        used = Used()
        with self.settled_on_error():
            yield used
        self.settle(used)

    @contextmanager
    def settled_on_error(self) -> Iterator[None]:
        """Settles it if something is raised: what was not started has used nothing."""
        try:
            yield
        except BaseException as error:
            self.settle(error=error)
            raise

    def settle(self, used: Used | None = None, error: BaseException | None = None) -> None:
        """It has ended, with ``error`` if it was cut: a cancelled one was left by its client."""
        if self._is_settled:
            return
        self._is_settled = True
        used = used or Used()
        self._ticket.settle(
            prompt_tokens=used.prompt_tokens,
            cached_tokens=used.cached_tokens,
            completion_tokens=used.completion_tokens,
        )
        if isinstance(error, asyncio.CancelledError):
            error = ClientDisconnectedError()
        record = self._record(used, error)
        self._log(record, error)
        self._recorder.record(record if self.call.body is None else record.with_body(self.call.body))

    def _record(self, used: Used, error: BaseException | None) -> UsageRecord:
        status = 200 if error is None else self._status_of(error) if isinstance(error, Exception) else 500
        return UsageRecord(
            id=str(uuid.uuid4()),
            request_id=self.call.request_id,
            tenant_id=self.tenant.id,
            model=self.model_name[:_MAX_NAME_CHARS],
            endpoint=self.call.endpoint,
            status=status,
            finish_reason=used.finish_reason,
            prompt_tokens=used.prompt_tokens,
            cached_tokens=used.cached_tokens,
            completion_tokens=used.completion_tokens,
            queue_ms=_ms(used.queue_s),
            ttft_ms=None if used.first_text_at is None else _ms(used.first_text_at - self._admitted_at),
            response_time_ms=round((time.monotonic() - self._admitted_at) * 1e3, 1),
            created_at=self._created_at,
        )

    def _log(self, record: UsageRecord, error: BaseException | None) -> None:
        """One line, with what its request's other lines have: it may be written outside of the request."""
        code = None if error is None else error.code if isinstance(error, NexaError) else NexaError.code
        _log.info(
            "request_ended",
            request_id=record.request_id,
            tenant=record.tenant_id,
            key_id=self.call.key_id,
            model=record.model,
            endpoint=record.endpoint,
            lora=adapters_text(self.adapters) or None,
            status=record.status,
            outcome=code or record.finish_reason or "complete",
            prompt_tokens=record.prompt_tokens,
            cached_tokens=record.cached_tokens,
            completion_tokens=record.completion_tokens,
            queue_ms=record.queue_ms,
            ttft_ms=record.ttft_ms,
            total_ms=record.response_time_ms,
        )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 1)
