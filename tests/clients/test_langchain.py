"""LangChain's ChatOpenAI and OpenAIEmbeddings (langchain-openai) against the running server."""

import asyncio
from typing import Any

import numpy as np
import openai
import pytest
import tiktoken.model
import tiktoken.registry
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr

from nexa_runtime.llama import Vocab
from tests.clients.cases import (
    ANSWER,
    PERSON_QUESTION,
    QUESTION,
    TOO_LONG,
    WEATHER,
    WEATHER_ANSWER,
    WEATHER_QUESTION,
    Booking,
    Person,
)
from tests.support import LiveServer

QWEN2_PATTERN = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How the demo model's tokenizer splits a text first."""
KEY = SecretStr("none")
TEXTS = ["Hello there", "¿Cuál es la capital de Perú?", "12 + 30", "a  b\n\nc"]


@tool
def get_weather(city: str) -> str:
    """Get the current weather of a city"""
    assert city == "Paris"
    return WEATHER


def chat(server: LiveServer, **fields: Any) -> Any:
    return ChatOpenAI(
        model="demo", base_url=f"{server.url}/v1", api_key=KEY, temperature=0, max_retries=0, **fields
    )


def embeddings(server: LiveServer, **fields: Any) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(model="demo", base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, **fields)


@pytest.fixture
def llm(server: LiveServer) -> Any:
    return chat(server)


def test_invoke_with_its_usage(llm: Any) -> None:
    message = llm.invoke(QUESTION)
    assert message.content == ANSWER
    assert message.response_metadata["finish_reason"] == "stop"
    assert message.response_metadata["model_name"] == "demo"
    usage = message.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_token_details"]["cache_read"] >= 0


def test_a_conversation_of_all_roles(llm: Any) -> None:
    messages = [
        SystemMessage("You are helpful."),
        HumanMessage([{"type": "text", "text": "Hello!"}]),
        AIMessage("Hello! How can I help you?"),
        HumanMessage(QUESTION),
    ]
    assert llm.invoke(messages, stop=["never"], max_tokens=50).content == ANSWER


def test_stream_adds_up_to_the_answer_and_its_usage(llm: Any) -> None:
    chunks = list(llm.stream(QUESTION, stream_usage=True))
    assert len(chunks) > 3
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.content == ANSWER
    assert whole.response_metadata["finish_reason"] == "stop"
    assert whole.usage_metadata["output_tokens"] > 3


def test_batch_and_async(llm: Any, server: LiveServer) -> None:
    questions = [QUESTION, "¿Cuál es la capital de Perú?"]
    answers = [one.content for one in llm.batch(questions)]
    assert answers[0] == ANSWER

    async def run() -> list[str]:
        async with openai.DefaultAsyncHttpxClient() as http:  # LangChain closes none of its own
            llm = chat(server, http_async_client=http)
            whole = [one.content for one in await llm.abatch(questions)]
            text = ""
            async for chunk in llm.astream(QUESTION):
                text += chunk.content
            return [*whole, (await llm.ainvoke(QUESTION)).content, text]

    assert asyncio.run(run()) == [*answers, ANSWER, ANSWER]


def run_tool_loop(llm: Any, is_streamed: bool) -> None:
    bound = llm.bind_tools([get_weather])
    messages: list[Any] = [HumanMessage(WEATHER_QUESTION)]

    def ask() -> Any:
        if not is_streamed:
            return bound.invoke(messages)
        whole, *others = bound.stream(messages)
        for chunk in others:
            whole += chunk
        return whole

    called = ask()
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    answer = get_weather.invoke(call)
    assert isinstance(answer, ToolMessage)
    messages += [called, answer]
    last = ask()
    assert last.text == WEATHER_ANSWER
    assert not last.tool_calls


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_tool_loop(llm: Any, is_streamed: bool) -> None:
    run_tool_loop(llm, is_streamed)


def test_a_forced_tool(llm: Any) -> None:
    for choice in ("get_weather", "any"):
        called = llm.bind_tools([get_weather], tool_choice=choice).invoke("Say anything.")
        assert {call["name"] for call in called.tool_calls} == {"get_weather"}
        assert called.invalid_tool_calls == []


# langchain-openai dumps a parsed answer that the openai package holds in a field without a type.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning:pydantic.main")
def test_structured_output_by_json_schema(llm: Any) -> None:
    structured = llm.with_structured_output(Person, method="json_schema", include_raw=True)
    result = structured.invoke(PERSON_QUESTION)
    assert result["parsed"] == Person(name="Ana", age=30)
    assert result["parsing_error"] is None
    streamed = list(llm.with_structured_output(Person).stream(PERSON_QUESTION))
    assert streamed[-1] == Person(name="Ana", age=30)
    assert isinstance(llm.with_structured_output(Booking, strict=True).invoke("Go on."), Booking)


def test_structured_output_by_a_call_and_by_json_alone(llm: Any) -> None:
    by_call = llm.with_structured_output(Booking, method="function_calling")
    assert isinstance(by_call.invoke("Go on."), Booking)
    assert isinstance(list(by_call.stream("Go on."))[-1], Booking)
    by_json = llm.with_structured_output(Person, method="json_mode")
    assert by_json.invoke(PERSON_QUESTION) == Person(name="Ana", age=30)


def test_the_responses_api(server: LiveServer) -> None:
    llm = chat(server, use_responses_api=True)
    message = llm.invoke([SystemMessage("You are helpful."), HumanMessage(QUESTION)])
    assert message.text == ANSWER
    assert message.usage_metadata["output_tokens"] > 3
    whole, *others = llm.stream(QUESTION)
    for chunk in others:
        whole += chunk
    assert whole.text == ANSWER
    assert whole.usage_metadata["output_tokens"] > 3
    structured = llm.with_structured_output(Person, method="json_schema")
    assert structured.invoke(PERSON_QUESTION) == Person(name="Ana", age=30)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_tool_loop_by_the_responses_api(server: LiveServer, is_streamed: bool) -> None:
    run_tool_loop(chat(server, use_responses_api=True), is_streamed)


def test_log_probabilities_and_several_answers(llm: Any) -> None:
    message = llm.bind(logprobs=True, top_logprobs=2).invoke(QUESTION)
    spelled = b"".join(bytes(one["bytes"]) for one in message.response_metadata["logprobs"]["content"])
    assert spelled.decode() == ANSWER
    (answers,) = llm.generate([[HumanMessage(QUESTION)]], n=2).generations
    assert [one.text for one in answers] == [ANSWER] * 2


def test_errors_are_langchains_own(llm: Any) -> None:
    with pytest.raises(ContextOverflowError):
        llm.invoke(TOO_LONG)
    with pytest.raises(openai.NotFoundError, match="model"):
        llm.bind(model="none").invoke(QUESTION)
    with pytest.raises(openai.BadRequestError, match="verbosity"):
        list(llm.bind(verbosity="high").stream(QUESTION))


def encoding_of(vocab: Vocab) -> tiktoken.Encoding:
    """The model's tokenizer for tiktoken: its ids, in the order in which they were merged."""
    texts = {piece: token for token, piece in enumerate(vocab.pieces) if piece}
    return tiktoken.Encoding("demo", pat_str=QWEN2_PATTERN, mergeable_ranks=texts, special_tokens={})


@pytest.fixture
def encoding(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> tiktoken.Encoding:
    """tiktoken knows the demo model. Else it downloads OpenAI's vocabulary, whose ids mean nothing here."""
    made = encoding_of(server.loaded.model.vocab)
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "demo", made)
    monkeypatch.setitem(tiktoken.model.MODEL_TO_ENCODING, "demo", "demo")
    return made


@pytest.mark.usefixtures("encoding")
def test_texts_sent_as_tokens_have_the_vectors_of_the_texts(server: LiveServer) -> None:
    by_tokens, by_text = embeddings(server), embeddings(server, check_embedding_ctx_length=False)
    expected = by_text.embed_documents(TEXTS)
    assert np.allclose(by_tokens.embed_documents(TEXTS), expected, atol=1e-5)
    assert np.allclose(by_tokens.embed_query(TEXTS[1]), expected[1], atol=1e-5)

    async def run() -> list[list[float]]:
        async with openai.DefaultAsyncHttpxClient() as http:
            by_tokens = embeddings(server, http_async_client=http)
            return await by_tokens.aembed_documents(TEXTS, chunk_size=2)

    assert np.allclose(asyncio.run(run()), expected, atol=1e-5)


def test_tiktoken_and_the_server_agree_on_tokens(server: LiveServer, encoding: tiktoken.Encoding) -> None:
    vocab = server.loaded.model.vocab
    for text in TEXTS:
        assert encoding.encode_ordinary(text) == vocab.tokenize(text, parse_special=False).tolist()


def test_a_long_text_is_the_mean_of_its_parts(server: LiveServer, encoding: tiktoken.Encoding) -> None:
    text = "The capital of France is Paris, and that of Peru is Lima. " * 9
    (split,) = embeddings(server, embedding_ctx_length=50).embed_documents([text])
    tokens = encoding.encode_ordinary(text)
    parts = [tokens[at : at + 50] for at in range(0, len(tokens), 50)]
    assert len(parts) > 2
    data = server.http.post("/v1/embeddings", json={"input": parts}).json()["data"]
    mean = np.average([one["embedding"] for one in data], axis=0, weights=[len(part) for part in parts])
    assert split == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_ids_of_another_vocabulary_are_refused(server: LiveServer) -> None:
    with pytest.raises(openai.BadRequestError, match="Token ids of this model are 0 to"):
        embeddings(server, check_embedding_ctx_length=False).client.create(input=[[9906, 1070]], model="demo")
