"""What every route may use, made when the application starts."""

from dataclasses import dataclass
from typing import TypedDict, cast

from starlette.requests import Request

from nexa_runtime.config import ServerSettings
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.serving.embedding import EmbeddingService
from nexa_runtime.serving.generation import GenerationService


@dataclass(frozen=True, slots=True)
class Services:
    """The layer below, and the server's own settings."""

    dispatcher: Dispatcher
    generation: GenerationService
    embedding: EmbeddingService
    settings: ServerSettings


class State(TypedDict):
    """Starlette's lifespan state."""

    services: Services


def services(request: Request) -> Services:
    """The services of the application that got this request."""
    return cast(Services, request.state.services)
