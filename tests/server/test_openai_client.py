"""The openai package against the running server: streamed and not, sync and async."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support import LiveServer

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_sync(client: Any) -> None:
    completion = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    assert completion.choices[0].message.content == ANSWER
    assert completion.usage.prompt_tokens_details.cached_tokens >= 0


def test_sync_stream(client: Any) -> None:
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == ANSWER
    assert chunks[-1].usage.total_tokens > 0
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_legacy_completion_and_models(client: Any) -> None:
    completion = client.completions.create(model="demo", prompt=["Hi", "Ho"], max_tokens=2, temperature=0)
    assert len(completion.choices) == 2
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "nexa-runtime"


def test_errors_become_the_clients_own(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="none", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="demo", messages=QUESTION, verbosity="high")
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "verbosity")


def test_async_and_its_stream(server: LiveServer) -> None:
    async def run() -> tuple[str, str]:
        client: Any
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            whole = await client.chat.completions.create(model="demo", messages=QUESTION)
            text = ""
            stream = await client.chat.completions.create(model="demo", messages=QUESTION, stream=True)
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
            return whole.choices[0].message.content or "", text

    assert asyncio.run(run()) == (ANSWER, ANSWER)
