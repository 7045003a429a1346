"""``nexa-runtime run``: one answer, or a chat, in the terminal, from the same engine that serves HTTP.

The answer goes to stdout, everything else to stderr; with ``--json`` it is one document at the end. Ctrl-C
ends an answer, and at the prompt the chat. Questions are read outside the event loop, so that Ctrl-C
interrupts the reading too. ``probe`` is here because it needs llama.cpp as well. ``main`` calls both.
"""

import asyncio
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from nexa_runtime.chat.messages import Conversation, Message, Role
from nexa_runtime.cli import output as words
from nexa_runtime.cli.loading import load_default
from nexa_runtime.cli.output import Document, Output
from nexa_runtime.config import Settings
from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.errors import ClientDisconnectedError, IntegrityError, NexaError, UsageError
from nexa_runtime.serving.call import Call
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.serving.generation import Usage
from nexa_runtime.serving.generation_service import GenerationOptions, GenerationService
from nexa_runtime.serving.pool import ModelPool
from nexa_runtime.serving.probe import Prober
from nexa_runtime.serving.tenants import LOCAL_TENANT
from nexa_runtime.store.gguf import read_header
from nexa_runtime.store.importing import find_files
from nexa_runtime.store.store import state_dir

_talk = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    model: str
    text: str
    finish_reason: FinishReason
    usage: Usage
    seconds: float


def run(settings: Settings, output: Output, prompt: str | None) -> None:
    """Answer ``prompt``, or chat until the input ends.

    Raises ``NexaError``, and ``KeyboardInterrupt`` when the answer or the chat was interrupted.
    """
    if output.is_json and prompt is None:
        raise UsageError("--json needs a question: nexa-runtime run MODEL PROMPT --json")
    pool, _ = load_default(settings)
    with asyncio.Runner() as runner:
        dispatcher = runner.run(_start(pool, settings))
        service = GenerationService(dispatcher)
        try:
            if prompt is None:
                _chat(runner, service, dispatcher.pool.library.default_name)
            else:
                _answer_once(runner, service, output, prompt)
        finally:
            runner.run(_stop(dispatcher))


def probe(settings: Settings, output: Output, paths: list[Path]) -> None:
    """Say that a model can be served. Raises ``IntegrityError`` with the reason if it cannot."""
    files = find_files([Path(os.path.expanduser(path)) for path in paths])
    for file in files:
        read_header(file)
    problem, _ = Prober(state_dir(settings.store)).probe(files)
    if problem:
        raise IntegrityError(f"{files[0].name} cannot be served: {problem}.")
    document = {"files": [str(file) for file in files], "can_be_served": True}
    output.result(document, f"{words.clean(files[0].name)} can be served.")


async def _start(pool: ModelPool, settings: Settings) -> Dispatcher:
    dispatcher = Dispatcher(pool, settings.serving, slots=settings.engine.slots)
    dispatcher.start()
    return dispatcher


async def _stop(dispatcher: Dispatcher) -> None:
    await dispatcher.stop()
    await dispatcher.close()


def _answer_once(runner: asyncio.Runner, service: GenerationService, output: Output, prompt: str) -> None:
    answer = runner.run(_answer(service, [Message(Role.USER, prompt)], is_shown=not output.is_json))
    if answer is None:
        raise KeyboardInterrupt
    if output.is_json:
        output.result(_document(answer), "")


def _document(answer: Answer) -> Document:
    usage = answer.usage
    return {
        "model": answer.model,
        "text": answer.text,
        "finish_reason": answer.finish_reason.value,
        "usage": {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens},
        "seconds": round(answer.seconds, 3),
    }


def _chat(runner: asyncio.Runner, service: GenerationService, name: str) -> None:
    if sys.stdin.isatty():
        _talk.print(f"A chat with {name}. Ctrl-C ends an answer, Ctrl-D the chat.", style="dim")
    history: list[Message] = []
    while (question := _ask()) is not None:
        if not question.strip():
            continue
        history.append(Message(Role.USER, question))
        try:
            answer = runner.run(_answer(service, history, is_shown=True))
        except NexaError as error:
            _talk.print(str(error), style="red", markup=False)
            answer = None
        if answer is None:
            history.pop()
        else:
            history.append(Message(Role.ASSISTANT, answer.text))


def _ask() -> str | None:
    """A line of input, or None at its end."""
    if sys.stdin.isatty():
        _talk.print("> ", end="", style="bold")
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


async def _answer(service: GenerationService, messages: list[Message], *, is_shown: bool) -> Answer | None:
    """One answer, on stdout while it comes if ``is_shown``, what the model thinks on stderr; None if it was
    interrupted.
    """
    start = time.monotonic()
    generation = await service.open_chat(
        LOCAL_TENANT, Call(), Conversation(tuple(messages)), GenerationOptions()
    )
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, generation.fail, ClientDisconnectedError())
    text, reason = "", FinishReason.STOP
    try:
        async for batch in generation.deltas():
            for delta in batch:
                text += delta.text
                reason = delta.finish_reason or reason
            if is_shown:
                thought = "".join(delta.reasoning for delta in batch)
                _talk.print(thought, style="dim", end="", markup=False, highlight=False)
                sys.stdout.write("".join(delta.text for delta in batch))
                sys.stdout.flush()
    except ClientDisconnectedError:
        return None
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        generation.close()
        if is_shown:
            sys.stdout.write("\n")
            sys.stdout.flush()
    return Answer(generation.model_name, text, reason, generation.usage, time.monotonic() - start)
