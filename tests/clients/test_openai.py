"""The openai package against the running server: chats, completions, embeddings, models and errors, as its
users call them.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.lib.streaming.chat import ContentDoneEvent

from nexa_runtime.tenancy.keys import create_key, digest
from tests.clients.cases import ANSWER, PERSON_QUESTION, QUESTION, TOO_LONG, Booking, Person
from tests.support import LiveServer, wait_until

MESSAGES: Any = [{"role": "user", "content": QUESTION}]
ASK: Any = {"model": "demo", "messages": MESSAGES, "temperature": 0}
KEY = create_key("acme")


@pytest.fixture
def acme(make_server: Any, tmp_path: Path) -> LiveServer:
    """A server with one tenant, who has a key and may ask twice a minute."""
    path = tmp_path / "tenants.yaml"
    limits = {"NEXA_API_KEY_SHA256": digest(KEY).hex(), "TENANT_HARD_LIMIT_RPM": 2}
    path.write_text(json.dumps({"tenants": {"acme": limits}}))
    server: LiveServer = make_server(NEXA_TENANTS_FILE=str(path), NEXA_API_KEY="service")
    return server


def test_sync(client: Any) -> None:
    completion = client.chat.completions.create(**ASK)
    assert completion.choices[0].message.content == ANSWER
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "demo"
    assert completion.usage.prompt_tokens_details.cached_tokens >= 0
    assert completion._request_id.startswith("req_")


def test_sync_stream(client: Any) -> None:
    chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == ANSWER
    assert chunks[-1].usage.total_tokens > 0
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_async_and_its_stream(server: LiveServer) -> None:
    async def run() -> list[str]:
        client: Any
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            whole = [client.chat.completions.create(**ASK) for _ in range(6)]
            answers = [one.choices[0].message.content for one in await asyncio.gather(*whole)]
            text = ""
            async for chunk in await client.chat.completions.create(**ASK, stream=True):
                text += chunk.choices[0].delta.content or ""
            async with client.chat.completions.stream(**ASK) as stream:
                final = await stream.get_final_completion()
            return [*answers, text, final.choices[0].message.content]

    assert asyncio.run(run()) == [ANSWER] * 8


def test_the_streaming_helper(client: Any) -> None:
    with client.chat.completions.stream(
        **ASK, logprobs=True, top_logprobs=2, stream_options={"include_usage": True}
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert "".join(one.delta for one in events if one.type == "content.delta") == ANSWER
    assert [one.content for one in events if isinstance(one, ContentDoneEvent)] == [ANSWER]
    choice = final.choices[0]
    assert (choice.message.content, choice.finish_reason) == (ANSWER, "stop")
    spelled = b"".join(bytes(one.bytes) for one in choice.logprobs.content)
    assert spelled.decode() == ANSWER
    assert final.usage.completion_tokens >= len(choice.logprobs.content)


def test_a_stream_that_is_closed_early_ends_the_generation(client: Any, server: LiveServer) -> None:
    with client.chat.completions.create(**ASK, stream=True, extra_body={"ignore_eos": True}) as stream:
        assert next(stream).choices[0].delta.role == "assistant"
    assert wait_until(server.is_idle)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_answer_parsed_into_a_class(client: Any, is_streamed: bool) -> None:
    fields = {**ASK, "messages": [{"role": "user", "content": PERSON_QUESTION}], "response_format": Person}
    if is_streamed:
        with client.chat.completions.stream(**fields) as stream:
            completion = stream.get_final_completion()
    else:
        completion = client.chat.completions.parse(**fields)
    assert completion.choices[0].message.parsed == Person(name="Ana", age=30)


def test_any_answer_parses_into_a_class_with_bounds(client: Any) -> None:
    for seed in range(2):
        completion = client.chat.completions.parse(
            **ASK | {"temperature": 1.5}, seed=seed, response_format=Booking
        )
        assert isinstance(completion.choices[0].message.parsed, Booking)


def test_an_answer_that_is_cut_is_not_parsed(client: Any) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**ASK, response_format=Booking, max_completion_tokens=3)


def test_options_and_fields_of_this_server(client: Any) -> None:
    completion = client.chat.completions.create(
        **ASK | {"temperature": 1.2},
        n=3,
        seed=7,
        max_completion_tokens=5,
        stop=["never"],
        logit_bias={},
        user="somebody",
        extra_body={"top_k": 20, "min_p": 0.1, "timings": True},
    )
    assert len(completion.choices) == 3
    assert completion.timings["predicted_n"] == completion.usage.completion_tokens


def test_completions_streamed_and_not(client: Any) -> None:
    completion = client.completions.create(model="demo", prompt=["Hi", "Ho"], max_tokens=2, temperature=0)
    assert [one.index for one in completion.choices] == [0, 1]
    prompt = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    chunks = client.completions.create(model="demo", prompt=prompt, temperature=0, stream=True, logprobs=1)
    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER


def test_embeddings_are_the_same_in_base64_and_as_numbers(client: Any, server: LiveServer) -> None:
    texts = ["Hello", "World"]
    by_default = client.embeddings.create(model="demo", input=texts)
    as_numbers = client.embeddings.create(model="demo", input=texts, encoding_format="float")
    assert [one.index for one in by_default.data] == [0, 1]
    assert len(by_default.data[0].embedding) == server.loaded.model.embedding_size
    for one, other in zip(by_default.data, as_numbers.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert by_default.usage.total_tokens == by_default.usage.prompt_tokens > 1
    short = client.embeddings.create(model="demo", input="Hello", dimensions=8)
    assert len(short.data[0].embedding) == 8


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    model = client.models.retrieve("demo")
    assert (model.owned_by, model.object) == ("nexa-runtime", "model")
    assert model.context_length > 0
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


def test_raw_responses_have_the_headers(client: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        **ASK, extra_headers={"X-Request-Id": "my-own-id"}, extra_body={"mood": "good", "top_k": 5}
    )
    assert raw.headers["x-request-id"] == raw.request_id == "my-own-id"
    assert raw.headers["x-nexa-ignored"] == "mood"
    assert raw.parse().choices[0].message.content == ANSWER
    with client.chat.completions.with_streaming_response.create(**ASK, max_tokens=10**6) as response:
        assert response.headers["x-nexa-clamped"].startswith("max_tokens=")
        assert response.parse().choices[0].message.content == ANSWER


@pytest.mark.parametrize(
    ("fields", "error", "code", "param"),
    [
        ({"model": "none"}, openai.NotFoundError, "model_not_found", None),
        ({"verbosity": "high"}, openai.BadRequestError, "unsupported_parameter", "verbosity"),
        ({"temperature": -1}, openai.BadRequestError, "invalid_request", "temperature"),
        (
            {"messages": [{"role": "user", "content": TOO_LONG}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_errors_become_the_clients_own(
    client: Any, fields: Any, error: type[openai.APIStatusError], code: str, param: str, is_streamed: bool
) -> None:
    with pytest.raises(error) as refused:
        client.chat.completions.create(**ASK | fields, stream=is_streamed)
    assert refused.value.code == code
    assert refused.value.request_id
    assert param is None or refused.value.param == param


def test_an_endpoint_that_is_not_there(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.moderations.create(input="Hello")
    assert refused.value.code == "not_found"


def test_keys_and_limits_of_a_tenant(acme: LiveServer) -> None:
    client: Any
    with openai.OpenAI(base_url=f"{acme.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as unknown:
            client.chat.completions.create(**ASK)
        assert unknown.value.code == "invalid_api_key"
        with pytest.raises(openai.PermissionDeniedError) as other:
            client.with_options(api_key=KEY, default_headers={"X-Tenant-Id": "other"}).models.list()
        assert other.value.code == "tenant_mismatch"
        known = client.with_options(api_key=KEY)
        for remaining in ("1", "0"):
            raw = known.chat.completions.with_raw_response.create(**ASK)
            assert raw.headers["x-ratelimit-remaining-requests"] == remaining
        with pytest.raises(openai.RateLimitError) as limited:
            known.chat.completions.create(**ASK)
        assert limited.value.code == "rate_limit_exceeded"
        assert int(limited.value.response.headers["retry-after"]) >= 1
