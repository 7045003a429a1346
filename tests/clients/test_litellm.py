"""LiteLLM against the running server, as its providers ``openai``, ``hosted_vllm`` and ``anthropic``."""

import asyncio
from typing import Any

import pytest

from tests.clients.cases import (
    ANSWER,
    PERSON_QUESTION,
    QUESTION,
    TOO_LONG,
    WEATHER,
    WEATHER_ANSWER,
    WEATHER_QUESTION,
    Person,
)
from tests.server.test_tools import GET_WEATHER
from tests.support import LiveServer

# LiteLLM walks over every attribute of an answer, and so over those that pydantic wants to be rid of.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:Accessing the 'model_:DeprecationWarning:litellm\.litellm_core_utils\.model_response_utils"
)

MESSAGES: Any = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def litellm() -> Any:
    """Imported here and not above: it takes seconds, and reads the environment at once."""
    import litellm

    litellm.telemetry = False
    litellm.suppress_debug_info = True
    return litellm


@pytest.fixture
def place(server: LiveServer) -> dict[str, Any]:
    """Where every call goes."""
    return {"api_base": f"{server.url}/v1", "api_key": "none", "max_retries": 0}


@pytest.fixture
def ask(place: dict[str, Any]) -> dict[str, Any]:
    """A chat."""
    return {"model": "openai/demo", **place, "temperature": 0, "messages": MESSAGES}


@pytest.mark.parametrize(
    "provider",
    [
        {"model": "openai/demo"},
        {"model": "demo", "custom_llm_provider": "openai"},
        {"model": "hosted_vllm/demo"},
    ],
)
def test_completion_and_its_stream(litellm: Any, ask: dict[str, Any], provider: Any) -> None:
    answer = litellm.completion(**ask | provider)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    chunks = list(litellm.completion(**ask | provider, stream=True, stream_options={"include_usage": True}))
    whole = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    assert whole.choices[0].message.content == ANSWER
    assert whole.usage.completion_tokens == answer.usage.completion_tokens


def test_async(litellm: Any, ask: dict[str, Any]) -> None:
    async def run() -> list[str]:
        answers = await asyncio.gather(*(litellm.acompletion(**ask) for _ in range(3)))
        text = ""
        async for chunk in await litellm.acompletion(**ask, stream=True):
            text += chunk.choices[0].delta.content or ""
        return [*(one.choices[0].message.content for one in answers), text]

    assert asyncio.run(run()) == [ANSWER] * 4


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_tool_loop(litellm: Any, ask: dict[str, Any], is_streamed: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": WEATHER_QUESTION}]
    fields = ask | {"messages": messages, "tools": [GET_WEATHER]}

    def send() -> Any:
        if not is_streamed:
            return litellm.completion(**fields)
        return litellm.stream_chunk_builder(list(litellm.completion(**fields, stream=True)))

    first = send().choices[0]
    assert first.finish_reason == "tool_calls"
    (call,) = first.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')
    messages += [first.message, {"role": "tool", "tool_call_id": call.id, "content": WEATHER}]
    assert send().choices[0].message.content == WEATHER_ANSWER


def test_an_answer_of_a_class(litellm: Any, ask: dict[str, Any]) -> None:
    fields = ask | {"messages": [{"role": "user", "content": PERSON_QUESTION}], "response_format": Person}
    content = litellm.completion(**fields).choices[0].message.content
    assert Person.model_validate_json(content) == Person(name="Ana", age=30)


def test_text_completion(litellm: Any, place: dict[str, Any]) -> None:
    prompt = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    answer = litellm.text_completion(
        model="text-completion-openai/demo", prompt=prompt, temperature=0, max_tokens=50, **place
    )
    assert answer.choices[0].text == ANSWER


def test_embeddings(litellm: Any, place: dict[str, Any], server: LiveServer) -> None:
    result = litellm.embedding(model="openai/demo", input=["Hello", "World"], **place)
    data = server.http.post("/v1/embeddings", json={"input": ["Hello", "World"]}).json()["data"]
    assert [one["embedding"] for one in result.data] == [
        pytest.approx(one["embedding"], abs=1e-6) for one in data
    ]
    assert result.usage.prompt_tokens > 1

    async def run() -> Any:
        return await litellm.aembedding(model="openai/demo", input=["Hello"], **place)

    assert asyncio.run(run()).data[0]["embedding"] == pytest.approx(data[0]["embedding"], abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "openai/none"}, "NotFoundError"),
        ({"top_p": 7}, "BadRequestError"),
        ({"messages": [{"role": "user", "content": TOO_LONG}]}, "ContextWindowExceededError"),
    ],
)
def test_errors_are_litellms_own(litellm: Any, ask: dict[str, Any], fields: Any, error: str) -> None:
    with pytest.raises(getattr(litellm.exceptions, error)):
        litellm.completion(**ask | fields)


def test_another_model_takes_what_is_too_long_for_the_first(
    litellm: Any, ask: dict[str, Any], make_server: Any
) -> None:
    small: LiveServer = make_server(NEXA_CTX_SIZE=512)
    long = [{"role": "user", "content": "one two three " * 100}]

    def named(name: str, **place: str) -> dict[str, Any]:
        fields = {key: ask[key] for key in ("model", "api_base", "api_key")}
        return {"model_name": name, "litellm_params": fields | place}

    router = litellm.Router(
        model_list=[named("small", api_base=f"{small.url}/v1"), named("large")],
        context_window_fallbacks=[{"small": ["large"]}],
        num_retries=0,
    )
    answer = router.completion(model="small", messages=long, temperature=0, max_tokens=4)
    assert answer.usage.prompt_tokens > 512


@pytest.mark.parametrize("is_streamed", [False, True])
def test_as_the_provider_anthropic(
    litellm: Any, ask: dict[str, Any], server: LiveServer, is_streamed: bool
) -> None:
    fields = {**ask, "model": "anthropic/demo", "api_base": server.url, "max_tokens": 64}
    answer = (
        litellm.stream_chunk_builder(list(litellm.completion(**fields, stream=True)))
        if is_streamed
        else litellm.completion(**fields)
    )
    assert answer.choices[0].message.content == ANSWER


def test_the_responses_api(litellm: Any, place: dict[str, Any]) -> None:
    response = litellm.responses(model="openai/demo", input=QUESTION, temperature=0, **place)
    assert response.output[0].content[0].text == ANSWER
    events = litellm.responses(model="openai/demo", input=QUESTION, temperature=0, stream=True, **place)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == ANSWER
