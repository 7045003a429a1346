"""Every error that Nexa Runtime raises on purpose.

Owns the whole exception tree. Each class carries a stable string ``code`` and its facts as fields; its text
is one sentence for a person. It never knows of HTTP statuses or exit codes: ``server/errors.py`` and ``cli``
map classes to those, once.

    NexaError
    ├── ConfigError                  a setting is missing or out of range
    ├── ModelFileError               a model file is absent, damaged or does not fit
    ├── LlamaGuardError              a call that would have killed the process was refused
    ├── RequestError                 the request is at fault
    │   ├── InvalidRequestError
    │   │   ├── UnsupportedParameterError
    │   │   ├── ContextLengthError
    │   │   └── InputTooLongError
    │   ├── ModelNotFoundError
    │   ├── ModelKindError
    │   ├── BodyTooLargeError
    │   └── BodyTimeoutError
    ├── ClientDisconnectedError      nobody is listening any more
    ├── QueueFullError               the box has no room for more waiting requests
    ├── ShuttingDownError            the box is going away
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
            f"The prompt has {'at least ' * is_lower_bound}{prompt_tokens} tokens;"
            f" at most {max_prompt_tokens} fit into the context of {context_tokens} tokens"
            " with room for an answer.",
            param=param,
        )


class InputTooLongError(InvalidRequestError):
    """A text to embed is longer than the model reads at once."""

    code = "context_length_exceeded"

    def __init__(self, *, param: str, num_tokens: int, max_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens
        super().__init__(f"{param} has {num_tokens} tokens; at most {max_tokens} are embedded.", param=param)


class ModelNotFoundError(RequestError):
    """A name that this server does not serve."""

    code = "model_not_found"

    def __init__(self, name: str, served: Sequence[str]) -> None:
        self.name = name
        super().__init__(
            f'The model "{name[:200]}" is not served here; there is: {", ".join(served)}.', param="model"
        )


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


class QueueFullError(NexaError):
    """As many requests wait as may wait."""

    code = "queue_full"

    def __init__(self, max_queue: int) -> None:
        self.max_queue = max_queue
        super().__init__(f"The server is full: {max_queue} requests are waiting already. Try again shortly.")


class ShuttingDownError(NexaError):
    """The engine stops; what was running cannot be finished here."""

    code = "server_shutting_down"

    def __init__(self) -> None:
        super().__init__("The server is shutting down.")


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
