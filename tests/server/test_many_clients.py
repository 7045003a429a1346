"""Many clients at once: equal answers, shared steps, and nothing left after they are killed."""

import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from nexa_runtime.chat.messages import Conversation, Message, Role
from tests.support import LiveServer, assert_same_or_near_tie, wait_until

CAPITALS = ["France", "Spain", "Portugal", "Italy", "Japan", "Brazil", "Argentina", "Mexico"]


def ask(url: str, question: str) -> str:
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 60}
    with httpx.Client(base_url=url, timeout=120) as client:
        response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200
    return str(response.json()["choices"][0]["message"]["content"])


def stream(server: LiveServer, question: str) -> str:
    with server.stream(question, temperature=0, max_tokens=60) as events:
        text, reason, _ = events.read()
    assert reason in ("stop", "length")
    return text


def test_32_clients_on_8_slots_get_the_answers_they_get_alone(make_server: Any) -> None:
    server = make_server()
    questions = [
        f"{prefix}What is the capital of {country}?"
        for country in CAPITALS
        for prefix in ("", "Hello! ", "Please tell me: " + "be polite. " * 20, "Quick question. " * 8)
    ]
    assert len(questions) == 32
    alone = [ask(server.url, question) for question in questions]
    assert wait_until(server.is_idle)
    num_steps_alone = server.totals.num_steps
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda question: stream(server, question), questions))
    assert server.totals.max_sequences == 8
    assert server.totals.num_steps - num_steps_alone < num_steps_alone / 2
    for question, left, right in zip(questions, together, alone, strict=True):
        prompt = server.loaded.template.render(Conversation((Message(Role.USER, question),)))
        tokens = server.loaded.model.vocab.tokenize(prompt.text, parse_special=True)
        assert_same_or_near_tie(server.loaded.model, tokens, left, right)
    assert wait_until(server.is_idle)


def test_200_clients_killed_at_random_moments_leave_nothing(make_server: Any) -> None:
    server = make_server(NEXA_MAX_QUEUE=400)
    host, port = server.url.removeprefix("http://").split(":")
    ask(server.url, "Hello")
    num_threads = threading.active_count()
    chance = random.Random(11)

    def kill_one(delay_s: float, is_stream: bool, num_words: int) -> None:
        content = "word " * num_words
        flag = "true" if is_stream else "false"
        body = (
            f'{{"messages": [{{"role": "user", "content": "{content}"}}], "ignore_eos": true,'
            f' "max_tokens": 2000, "stream": {flag}}}'
        ).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head + body)
            time.sleep(delay_s)  # the moment at which this client dies

    with ThreadPoolExecutor(40) as pool:
        for _ in range(200):
            pool.submit(kill_one, chance.random() * 0.4, chance.random() < 0.5, chance.randint(1, 700))
    assert wait_until(server.is_idle)
    assert wait_until(server.has_clean_books)
    assert ask(server.url, "What is the capital of France?") == "The capital of France is Paris."
    assert (
        threading.active_count() <= num_threads + 40
    )  # worker threads of the event loop are kept and reused
    server.stop()
    assert not server.engine.is_alive
