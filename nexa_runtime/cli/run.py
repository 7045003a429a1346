"""``nexa-runtime run``: one answer, or a chat, in the terminal, from the same engine that serves HTTP.

The answer goes to stdout, everything else to stderr. Ctrl-C ends an answer, and at the prompt the chat.
Questions are read outside the event loop, so that Ctrl-C interrupts the reading too.
"""

import asyncio
import signal
import sys
from pathlib import Path

from rich.console import Console

from nexa_runtime.chat.messages import Message, Role
from nexa_runtime.cli.loading import load_pool
from nexa_runtime.config import Settings
from nexa_runtime.errors import ClientDisconnectedError, IntegrityError, NexaError
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.serving.generation import GenerationOptions, GenerationService
from nexa_runtime.serving.pool import ModelPool
from nexa_runtime.serving.probe import Prober
from nexa_runtime.serving.tenants import LOCAL_TENANT
from nexa_runtime.store.gguf import read_header
from nexa_runtime.store.store import state_dir

_talk = Console(stderr=True, highlight=False)


def run(settings: Settings, prompt: str | None) -> None:
    """Answer ``prompt``, or chat until the input ends.

    Raises ``NexaError``, and ``KeyboardInterrupt`` when the answer or the chat was interrupted.
    """
    pool = load_pool(settings)
    with asyncio.Runner() as runner:
        dispatcher = runner.run(_start(pool, settings))
        service = GenerationService(dispatcher)
        try:
            if prompt is None:
                _chat(runner, service, dispatcher.pool.library.default_name)
            elif runner.run(_answer(service, [Message(Role.USER, prompt)])) is None:
                raise KeyboardInterrupt
        finally:
            runner.run(_stop(dispatcher))


def probe(settings: Settings, files: list[Path]) -> None:
    """Say that a model can be served. Raises ``IntegrityError`` with the reason if it cannot."""
    for file in files:
        read_header(file)
    problem, _ = Prober(state_dir(settings.store)).probe(files)
    if problem:
        raise IntegrityError(f"{files[0].name} cannot be served: {problem}.")
    _talk.print(f"{files[0].name} can be served.", markup=False)


async def _start(pool: ModelPool, settings: Settings) -> Dispatcher:
    dispatcher = Dispatcher(pool, settings.serving, slots=settings.engine.slots)
    dispatcher.start()
    return dispatcher


async def _stop(dispatcher: Dispatcher) -> None:
    await dispatcher.stop()
    await dispatcher.close()


def _chat(runner: asyncio.Runner, service: GenerationService, name: str) -> None:
    if sys.stdin.isatty():
        _talk.print(f"A chat with {name}. Ctrl-C ends an answer, Ctrl-D the chat.", style="dim")
    history: list[Message] = []
    while (question := _ask()) is not None:
        if not question.strip():
            continue
        history.append(Message(Role.USER, question))
        try:
            answer = runner.run(_answer(service, history))
        except NexaError as error:
            _talk.print(str(error), style="red", markup=False)
            answer = None
        if answer is None:
            history.pop()
        else:
            history.append(Message(Role.ASSISTANT, answer))


def _ask() -> str | None:
    """A line of input, or None at its end."""
    if sys.stdin.isatty():
        _talk.print("> ", end="", style="bold")
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


async def _answer(service: GenerationService, messages: list[Message]) -> str | None:
    """Stream one answer to stdout; None if it was interrupted."""
    generation = await service.open_chat(LOCAL_TENANT, messages, GenerationOptions())
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, generation.fail, ClientDisconnectedError())
    text = ""
    try:
        async for batch in generation.deltas():
            for delta in batch:
                text += delta.text
                sys.stdout.write(delta.text)
            sys.stdout.flush()
    except ClientDisconnectedError:
        return None
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        generation.close()
        sys.stdout.write("\n")
        sys.stdout.flush()
    return text
