"""``nexa-runtime run``: one answer, or a chat, in the terminal, from the same engine that serves HTTP.

The answer goes to stdout, everything else to stderr. Ctrl-C ends an answer; in a chat the next question may
follow.
"""

import asyncio
import signal
import sys

from anyio.to_thread import run_sync
from rich.console import Console

from nexa_runtime.chat.messages import Message, Role
from nexa_runtime.config import Settings
from nexa_runtime.errors import ClientDisconnectedError, NexaError
from nexa_runtime.serving.generation import GenerationOptions, GenerationService
from nexa_runtime.serving.pool import ModelPool, load_model

_INTERRUPTED = 130

_talk = Console(stderr=True, highlight=False)


async def run(settings: Settings, prompt: str | None) -> None:
    """Answer ``prompt``, or chat until the input ends. Raises ``NexaError``; exits 130 if interrupted."""
    pool = ModelPool(load_model(settings.model, settings.engine))
    service = GenerationService(pool, settings.serving)
    service.start()
    try:
        if prompt is None:
            await _chat(service)
        elif not await _answer(service, [Message(Role.USER, prompt)]):
            sys.exit(_INTERRUPTED)
    finally:
        await service.stop()
        await service.close()


async def _chat(service: GenerationService) -> None:
    if sys.stdin.isatty():
        _talk.print(
            f"A chat with {service.pool.default.id}. Ctrl-C ends an answer, Ctrl-D the chat.", style="dim"
        )
    history: list[Message] = []
    while (question := await run_sync(_ask)) is not None:
        if not question.strip():
            continue
        history.append(Message(Role.USER, question))
        try:
            answer = await _answer(service, history)
        except NexaError as error:
            _talk.print(str(error), style="red", markup=False)
            history.pop()
            continue
        history.append(Message(Role.ASSISTANT, answer or ""))


def _ask() -> str | None:
    """A line of input, or None at its end."""
    if sys.stdin.isatty():
        _talk.print("> ", end="", style="bold")
    try:
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        return None
    return line.rstrip("\n") if line else None


async def _answer(service: GenerationService, messages: list[Message]) -> str | None:
    """Stream one answer to stdout; None if it was interrupted."""
    generation = await service.open_chat(messages, GenerationOptions())
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
