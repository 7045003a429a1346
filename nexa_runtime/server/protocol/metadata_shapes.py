"""The shape of ``GET /v1/metadata``, for the API's document.

Owns its types; ``endpoints`` names the outermost, a test holds real answers to it. It never makes an answer.
Source: version 1 of what services of Nexus say of themselves, with ``name``, ``version`` and ``domains`` also
at the top, and ``limits``, ``models`` and ``components`` besides.
"""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

Domain = Literal["llm", "embeddings"]


class Service(TypedDict):
    """Who this is."""

    name: str
    version: str
    description: str


class Capabilities(TypedDict):
    """What some model here can do. ``max_concurrency``: requests that run at once."""

    domains: list[Domain]
    modalities: list[Literal["text"]]
    max_concurrency: int
    streaming: bool
    chat: bool
    tools: bool
    json_schema: bool
    grammar: bool
    reasoning: bool
    logprobs: bool
    lora: bool
    embeddings: bool
    rerank: bool


class EndpointAbout(TypedDict):
    """One method of one path. ``access``: who may call it on a server with keys. Schemas are references into
    this document; ``event_schema`` is of each event of a stream.
    """

    method: str
    path: str
    operation_id: str
    summary: str
    access: Literal["tenant", "public"]
    request_schema: NotRequired[str]
    response_schema: NotRequired[str]
    event_schema: NotRequired[object]


class Option(TypedDict):
    """A field of a chat's body, as a UI may offer it. ``default``: null where there is none."""

    key: str
    label: str
    type: Literal["number", "integer", "boolean", "string", "enum", "json"]
    default: object
    min: NotRequired[float]
    max: NotRequired[float]
    values: NotRequired[list[str | int]]
    description: NotRequired[str]


class Ui(TypedDict):
    """For a form."""

    options: list[Option]


class Resources(TypedDict):
    """What the loaded models take. ``cpu``: cores that may be used."""

    cpu: str
    memory: str
    gpu: Literal["used", "none"]
    memory_budget_bytes: int
    memory_used_bytes: int


class BoxLimits(TypedDict):
    """What requests may take. The three that may be null are the default model's, until it is loaded."""

    slots: int
    kv_cells: int | None
    max_context_tokens: int | None
    max_input_tokens: int | None
    max_queue: int
    max_body_bytes: int
    body_timeout_s: float
    request_timeout_s: float


class ModelAbout(TypedDict):
    """A model that is served; what only loading tells is null until then."""

    id: str
    names: list[str]
    is_default: bool
    is_loaded: bool
    kinds: list[str] | None
    context_length: int | None
    size_bytes: int
    lora: list[str]


class Components(TypedDict):
    """What the references of ``endpoints`` lead to."""

    schemas: dict[str, object]


class Metadata(TypedDict):
    """What this server is and can do."""

    schema_version: Literal["v1"]
    name: str
    version: str
    domains: list[Domain]
    service: Service
    capabilities: Capabilities
    endpoints: list[EndpointAbout]
    ui: Ui
    resources: Resources
    limits: BoxLimits
    models: list[ModelAbout]
    components: Components
