"""Every error that Nexa Runtime raises on purpose.

Owns the whole exception tree. Each class carries a stable string ``code`` and its facts as fields; its text
is one sentence for a person. It never knows of HTTP statuses or exit codes: ``server/errors.py`` and ``cli``
map classes to those, once.

    NexaError
    ├── ConfigError                  a setting is missing or out of range
    ├── ClientError                  a running server could not be asked, or refused (for commands)
    ├── UsageDatabaseError           the database of usage records is away, or does not take them
    │   └── RecordsRefusedError      it is there, and refuses these records
    ├── StoreError                   the model store or the way into it
    │   ├── UsageError               a command was given what it cannot take
    │   ├── NotFoundError            no such model, repository, revision or file
    │   ├── HubAccessError           gated, private, or the token is not accepted
    │   ├── NoSpaceError             the disk is too small for it
    │   ├── IntegrityError           bytes that are not what they should be
    │   ├── HubUnavailableError      the network or the hub failed; what came is kept
    │   └── ModelInUseError          a running server uses it
    ├── ModelFileError               a model file is absent, damaged or does not fit
    ├── LlamaGuardError              a call that would have killed the process was refused
    ├── SourceUnavailableError       the source of limits gives no word
    ├── DiscoveryError               etcd could not be asked, or refused (for the log)
    ├── TenantConfigError            a tenant's limits cannot be told
    │   ├── TenantConfigInvalidError
    │   └── TenantConfigUnavailableError
    ├── RequestError                 the request is at fault
    │   ├── InvalidRequestError
    │   │   ├── UnsupportedParameterError
    │   │   ├── AnswerFormError
    │   │   ├── ContextLengthError
    │   │   ├── InputTooLongError
    │   │   └── InvalidTenantIdError
    │   ├── AuthenticationError      no key, or none that is known
    │   ├── AccessError              known, but not allowed
    │   │   ├── TenantUnknownError
    │   │   ├── TenantMismatchError
    │   │   ├── ModelNotAllowedError
    │   │   └── AddressDeniedError
    │   ├── ModelNotFoundError
    │   ├── ResponseNotFoundError
    │   ├── ModelKindError
    │   ├── BodyTooLargeError
    │   ├── HeaderTimeoutError
    │   └── BodyTimeoutError
    ├── TenantLimitError             the tenant has used what it may
    │   ├── RequestRateError
    │   ├── TokenRateError
    │   └── TenantQueueFullError
    ├── BoxBusyError                 the box cannot take it now
    │   ├── OverloadedError
    │   ├── QueueTimeoutError
    │   ├── ModelLoadingError
    │   ├── ModelLoadFailedError
    │   ├── ModelMemoryError
    │   ├── ConnectionLimitError
    │   ├── DrainingError           it takes nothing new: it is about to end
    │   └── ShuttingDownError       it ends, and this was not finished
    ├── ClientDisconnectedError      nobody is listening any more
    ├── RequestTimeoutError          the request took longer than it may
    └── DecodeError                  llama.cpp could not compute this sequence
"""

from collections.abc import Sequence
from pathlib import Path


class NexaError(Exception):
    """Base of all. ``code`` is part of the API: it never changes once released."""

    code = "internal_error"


class ConfigError(NexaError):
    """A setting is wrong; the message names it and its range."""

    code = "config_invalid"


class ClientError(NexaError):
    """A command asked a running server and got no answer that helps."""

    code = "server_not_asked"

    def __init__(self, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(f"{url} {reason}")


class UsageDatabaseError(NexaError):
    """The database of usage records is away, or not as it must be. ``reason`` never holds the password."""

    code = "usage_database"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The usage database cannot be used: {reason}")


class RecordsRefusedError(UsageDatabaseError):
    """The database works, and does not take at least one of these records."""


class StoreError(NexaError):
    """The model store refused, in one sentence for a person; ``cli`` gives each class an exit code."""

    code = "store_error"


class UsageError(StoreError):
    """A command was given something that it cannot take; the text names what it takes."""

    code = "usage"


class NotFoundError(StoreError):
    """No such model here, or no such repository, revision or file on the hub."""

    code = "not_found_in_store"


class HubAccessError(StoreError):
    """The hub wants a token with access to this repository."""

    code = "hub_access_denied"


class NoSpaceError(StoreError):
    """``needed_bytes`` are to be written and ``free_bytes`` are free."""

    code = "no_space"

    def __init__(self, path: Path, needed_bytes: int, free_bytes: int) -> None:
        self.path = path
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        super().__init__(
            f"{path} has {free_bytes / 1e9:.2f} GB free, and {needed_bytes / 1e9:.2f} GB are needed."
        )


class IntegrityError(StoreError):
    """A file is not a model, or its bytes are not those that were promised."""

    code = "integrity"


class HubUnavailableError(StoreError):
    """The network or the hub failed; what was transferred is kept, and the next try goes on from there."""

    code = "hub_unavailable"


class ModelInUseError(StoreError):
    """A running server uses the model."""

    code = "model_in_use"


class ModelFileError(NexaError):
    """A model cannot be loaded from a path."""

    code = "model_file_invalid"

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"cannot load the model {path}: {reason}")


class LlamaGuardError(NexaError):
    """An argument that makes llama.cpp abort the process was stopped in front of the call."""

    code = "llama_guard"


class SourceUnavailableError(NexaError):
    """The source of tenants' limits (Vault, a file) could not be asked, or gave no answer that can be used.

    ``reason`` is for the log; it never holds what a source has answered.
    """

    code = "limits_source_unavailable"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the limits cannot be read: {reason}")


class DiscoveryError(NexaError):
    """The server could not be registered, or its registration not be kept; serving goes on."""


class TenantConfigError(NexaError):
    """What a tenant may do cannot be told now. ``retry_after_s``: seconds until it is worth another try."""

    def __init__(self, message: str, retry_after_s: float = 5.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class TenantConfigInvalidError(TenantConfigError):
    """The tenant's limits have never been good. ``problems``: one sentence each, without values."""

    code = "tenant_config_invalid"

    def __init__(self, tenant_id: str, problems: Sequence[str]) -> None:
        self.tenant_id = tenant_id
        self.problems = tuple(problems)
        super().__init__(f'The limits of the tenant "{tenant_id}" are not valid: {" ".join(problems)}')


class TenantConfigUnavailableError(TenantConfigError):
    """No word from the source of limits, and nothing young enough is known."""

    code = "tenant_config_unavailable"

    def __init__(self, tenant_id: str) -> None:
        self.tenant_id = tenant_id
        super().__init__(f'The limits of the tenant "{tenant_id}" cannot be read at the moment.')


class RequestError(NexaError):
    """The client can mend this. ``param`` names the field at fault, if one is."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        self.message = message
        self.param = param
        super().__init__(message)


class InvalidRequestError(RequestError):
    """A body or field that cannot be understood or is out of range."""


class UnsupportedParameterError(InvalidRequestError):
    """A field of OpenAI's API that this server knows and does not support yet."""

    code = "unsupported_parameter"

    def __init__(self, param: str, detail: str = "") -> None:
        super().__init__(f"{param} is not supported{detail and f': {detail}'}.", param=param)


class AnswerFormError(InvalidRequestError):
    """An answer cannot be held to the form that was asked for, as was found while it was made."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The answer cannot be held to its form: {reason}.")


class ContextLengthError(InvalidRequestError):
    """A prompt leaves no room for an answer."""

    code = "context_length_exceeded"

    def __init__(
        self,
        *,
        prompt_tokens: int,
        max_prompt_tokens: int,
        context_tokens: int,
        param: str,
        is_lower_bound: bool = False,
    ) -> None:
        """``is_lower_bound``: the prompt was too long to count; it has that many tokens or more."""
        self.prompt_tokens = prompt_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self.context_tokens = context_tokens
        super().__init__(
            # LangChain, LiteLLM and Anthropic's users know the error by these words.
            f"The prompt is too long: it has {'at least ' * is_lower_bound}{prompt_tokens} tokens;"
            f" this model's maximum context length is {context_tokens} tokens,"
            f" of which a prompt may take {max_prompt_tokens}.",
            param=param,
        )


class InputTooLongError(InvalidRequestError):
    """A text to embed, or to rank with its query, is longer than the model reads at once."""

    code = "context_length_exceeded"

    def __init__(
        self,
        *,
        param: str,
        num_tokens: int,
        max_tokens: int,
        is_pair: bool = False,
        is_lower_bound: bool = False,
    ) -> None:
        """``is_lower_bound``: the text was too long to count; it has that many tokens or more."""
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens
        what = f"{param} with the query" if is_pair else param
        super().__init__(
            f"{what} has {'at least ' * is_lower_bound}{num_tokens} tokens;"
            f" at most {max_tokens} are {'ranked' if is_pair else 'embedded'}.",
            param=param,
        )


class InvalidTenantIdError(InvalidRequestError):
    """A tenant id that is none, or no id where one is needed. Nothing was looked up."""

    code = "invalid_tenant_id"


class AuthenticationError(RequestError):
    """No key where one is needed, or one that opens nothing."""

    code = "invalid_api_key"


class AccessError(RequestError):
    """Whoever asks is known, and may not do this."""

    code = "access_denied"


class TenantUnknownError(AccessError):
    """There is no such tenant, or it was deleted."""

    code = "tenant_unknown"

    def __init__(self, tenant_id: str) -> None:
        self.tenant_id = tenant_id
        super().__init__(f'There is no tenant "{tenant_id}" here.')


class TenantMismatchError(AccessError):
    """The key is one tenant's, the header names another."""

    code = "tenant_mismatch"

    def __init__(self, tenant_id: str) -> None:
        self.tenant_id = tenant_id
        super().__init__(f'This key is not one of the tenant "{tenant_id}" that X-Tenant-Id names.')


class ModelNotAllowedError(AccessError):
    """The tenant may not use this model."""

    code = "model_not_allowed"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f'This tenant may not use the model "{name[:200]}".', param="model")


class AddressDeniedError(AccessError):
    """The client's address is not on the list."""

    code = "address_denied"

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__(f"Requests from {address} are not taken here.")


class ModelNotFoundError(RequestError):
    """A name that this server does not serve."""

    code = "model_not_found"

    def __init__(self, name: str, served: Sequence[str]) -> None:
        self.name = name
        super().__init__(
            f'The model "{name[:200]}" is not served here; there is: {", ".join(served) or "none"}.',
            param="model",
        )


class ResponseNotFoundError(RequestError):
    """A response of earlier; none is kept."""

    code = "not_found"

    def __init__(self, response_id: str) -> None:
        self.response_id = response_id
        super().__init__(f'There is no response "{response_id[:100]}": this server keeps none.')


class ModelKindError(RequestError):
    """A model that cannot do what it was asked for."""

    code = "model_kind_mismatch"

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        super().__init__(f'The model "{name[:200]}" is not made for {kind}.', param="model")


class BodyTooLargeError(RequestError):
    """A request body is larger than the server takes."""

    code = "request_too_large"

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        super().__init__(f"The request body is larger than {max_bytes} bytes.")


class HeaderTimeoutError(RequestError):
    """The head of a request did not arrive in time."""

    code = "header_timeout"

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        super().__init__(f"The request's headers did not arrive within {timeout_s:g} seconds.")


class BodyTimeoutError(RequestError):
    """A request body did not arrive in time."""

    code = "body_timeout"

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        super().__init__(f"The request body did not arrive within {timeout_s:g} seconds.")


class ClientDisconnectedError(NexaError):
    """The client closed its connection before the answer was complete."""

    code = "client_disconnected"

    def __init__(self) -> None:
        super().__init__("The client closed the connection.")


class TenantLimitError(NexaError):
    """The tenant's own limit, not the box's. ``retry_after_s``: seconds until it is worth another try."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class RequestRateError(TenantLimitError):
    """More requests within 60 s than the tenant may send."""

    code = "rate_limit_exceeded"

    def __init__(self, limit: int, retry_after_s: float) -> None:
        self.limit = limit
        super().__init__(f"This tenant may send {limit} requests a minute, and has.", retry_after_s)


class TokenRateError(TenantLimitError):
    """More tokens within 60 s than the tenant may use."""

    code = "tokens_exceeded"

    def __init__(self, limit: int, asked: int, remaining: int, retry_after_s: float) -> None:
        self.limit = limit
        self.asked = asked
        self.remaining = remaining
        super().__init__(
            f"This request may use {asked} tokens; of this tenant's {limit} a minute {remaining} are left.",
            retry_after_s,
        )


class TenantQueueFullError(TenantLimitError):
    """As many of the tenant's requests wait as may wait."""

    code = "queue_full"

    def __init__(self, max_queue: int, retry_after_s: float) -> None:
        self.max_queue = max_queue
        super().__init__(f"This tenant has {max_queue} requests waiting already.", retry_after_s)


class BoxBusyError(NexaError):
    """The box, not the tenant, is the limit. ``retry_after_s``: seconds until it is worth another try."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class OverloadedError(BoxBusyError):
    """As many requests wait as may wait, over all tenants."""

    code = "overloaded"

    def __init__(self, num_waiting: int, retry_after_s: float) -> None:
        self.num_waiting = num_waiting
        super().__init__(f"The server is full: {num_waiting} requests are waiting already.", retry_after_s)


class QueueTimeoutError(BoxBusyError):
    """A request waited for a slot for longer than it may."""

    code = "queue_timeout"

    def __init__(self, timeout_s: float, retry_after_s: float = 1.0) -> None:
        self.timeout_s = timeout_s
        super().__init__(f"The request waited {timeout_s:g} seconds and no slot was free.", retry_after_s)


class ModelLoadingError(BoxBusyError):
    """The model is on its way into memory. ``loading_s``: since when; ``last_s``: what it took last time."""

    code = "model_loading"

    def __init__(self, name: str, loading_s: float, last_s: float | None = None) -> None:
        self.name = name
        self.loading_s = loading_s
        self.last_s = last_s
        last = "" if last_s is None else f"; last time it took {last_s:.1f} seconds"
        # Where nobody knows how long it takes, it is asked about less often the longer it takes.
        left_s = min(loading_s, 10.0) if last_s is None else last_s - loading_s
        super().__init__(
            f'The model "{name}" is being loaded, for {loading_s:.1f} seconds so far{last}.', max(left_s, 1.0)
        )


class ModelLoadFailedError(BoxBusyError):
    """The model could not be loaded lately; it is tried again after a while."""

    code = "model_load_failed"

    def __init__(self, name: str, reason: str, retry_after_s: float) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f'The model "{name}" could not be loaded: {reason}', retry_after_s)


class ModelMemoryError(BoxBusyError):
    """A model does not fit beside those that must stay."""

    code = "model_memory"

    def __init__(self, name: str, needed_bytes: int, budget_bytes: int) -> None:
        self.name = name
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes
        super().__init__(
            f'The model "{name}" needs {needed_bytes / 2**20:.0f} MiB; of the budget'
            f" {budget_bytes / 2**20:.0f} MiB can be had for it.",
            60.0,
        )


class ConnectionLimitError(BoxBusyError):
    """As many connections are open as may be."""

    code = "overloaded"

    def __init__(self, max_connections: int) -> None:
        self.max_connections = max_connections
        super().__init__(f"The server is full: it has {max_connections} connections open.", 1.0)


class DrainingError(BoxBusyError):
    """The server finishes what it has, and takes nothing new."""

    code = "draining"

    def __init__(self) -> None:
        super().__init__("The server is about to end and takes no new requests.", 5.0)


class ShuttingDownError(BoxBusyError):
    """The server ends, and what was running cannot be finished here."""

    code = "server_shutting_down"

    def __init__(self) -> None:
        super().__init__("The server has ended before the request was finished.", 5.0)


class RequestTimeoutError(NexaError):
    """A request lived longer than it may."""

    code = "request_timeout"

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        super().__init__(f"The request was aborted after {timeout_s:g} seconds.")


class DecodeError(NexaError):
    """llama.cpp failed on one sequence; the others go on."""

    code = "decode_failed"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The model could not compute this request: {reason}.")
