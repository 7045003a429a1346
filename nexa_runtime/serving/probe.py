"""Is a file safe to load into the server? It is tried first in a process of its own.

Owns the child process, its limits and the verdicts, which are kept by hash. The child loads the model with
its adapters, renders one chat with its template, computes one token, and has llama.cpp plan the memory that
the model will take; whatever it does to itself, the server stays up. ``loading`` asks here before it loads a
model of the store for the first time; ``nexa-runtime probe`` too.

    python -m nexa_runtime.serving.probe JSON    # the child: the last line of stdout is its verdict, as JSON

It says a line before each part that may end it, so that the last one holds then.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np

from nexa_runtime.chat.messages import Conversation, Message, Role, Tool
from nexa_runtime.chat.sandbox import TemplateBoundsError
from nexa_runtime.chat.template import CHATML, ChatTemplate, TemplateSyntaxError
from nexa_runtime.errors import ModelFileError, NexaError
from nexa_runtime.llama import (
    Context,
    ContextParams,
    DecodeStatus,
    EmbeddingContext,
    MemoryPlan,
    Model,
    check_scores,
    plan_memory,
)
from nexa_runtime.lora import MAX_SCALE, NO_ADAPTERS, AdapterSet
from nexa_runtime.serving.prompts import Tokens
from nexa_runtime.store.files import write_atomically
from nexa_runtime.telemetry import configure_logging, get_logger

_PATIENCE = 5
"""How much longer than its processor time a child may take in all: disks are slow, and the box is busy."""
_BASE_S = 20
_BYTES_PER_S = 100_000_000
"""Processor time that a child may take: this, and for each 100 MB a second more."""
_BASE_BYTES = 8 * 2**30
"""Address space that a child may take beside three times the size of the files."""
_MAX_PROMPT_LENGTH = 1_000_000
"""Characters that a template may make of one word: the server renders it anew for each request."""

_log = get_logger("serving.probe")


@dataclass(frozen=True, slots=True)
class Trial:
    """How a model is about to be served. ``adapters``: paths of LoRA adapters, and their scales. ``named``:
    names of others that requests may ask for, and their paths.

    ``params``: sizes of the context whose memory is planned; None: that is not asked.
    """

    params: ContextParams | None = None
    adapters: tuple[tuple[Path, float], ...] = ()
    named: tuple[tuple[str, Path], ...] = ()

    @property
    def key(self) -> str:
        """Changes when the verdict may."""
        stamps: list[tuple[str, float | str, tuple[int, ...]]]
        stamps = [(str(path), scale, _stamp(path)) for path, scale in self.adapters]
        stamps += [(str(path), name, _stamp(path)) for name, path in self.named]
        return json.dumps([self.params and asdict(self.params), stamps])


@dataclass(frozen=True, slots=True)
class Verdict:
    """``problem``: why the model cannot be served, empty if it can. ``plan``: None where there is none."""

    problem: str
    plan: MemoryPlan | None = None

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """From what ``asdict`` made. Raises ``KeyError``, ``TypeError`` or ``ValueError``."""
        plan = fields["plan"]
        if plan is not None and not all(type(number) is int for number in plan.values()):
            raise ValueError
        return cls(str(fields["problem"]), plan and MemoryPlan(**plan))


_NO_TRIAL = Trial()


class Prober:
    """``folder``: where verdicts are kept; where it cannot be written they are kept in memory."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "probes.json"
        self._version = metadata.version("llama-cpp-python")
        self._verdicts = self._read()
        self._child: subprocess.Popen[bytes] | None = None
        self._is_stopping = False

    def check(self, paths: Sequence[Path], digest: str, trial: Trial = _NO_TRIAL) -> None:
        """Try a model by its files, unless the verdict on ``digest`` is known. Blocks.

        Raises ``ModelFileError`` with the reason.
        """
        key = self._key(digest, trial)
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict, is_final = self._run(paths, trial)
            if is_final:
                self._verdicts[key] = verdict
                self._save()
        if verdict.problem:
            raise ModelFileError(paths[0], verdict.problem)

    def has_tried(self, digest: str, trial: Trial = _NO_TRIAL) -> bool:
        """Whether a verdict is known."""
        return self._key(digest, trial) in self._verdicts

    def plan(self, digest: str, trial: Trial) -> MemoryPlan | None:
        """The memory that a model which was tried is about to take, if it could be planned."""
        verdict = self._verdicts.get(self._key(digest, trial))
        return verdict.plan if verdict is not None else None

    def probe(self, paths: Sequence[Path]) -> tuple[str, bool]:
        """Why a model cannot be served, empty if it can; and whether that holds for good. Blocks.

        A child that was killed, or that a busy box did not let finish, says nothing about the file.
        """
        verdict, is_final = self._run(paths, _NO_TRIAL)
        return verdict.problem, is_final

    def _key(self, digest: str, trial: Trial) -> str:
        return f"{digest} {self._version} {trial.key}"

    def _run(self, paths: Sequence[Path], trial: Trial) -> tuple[Verdict, bool]:
        size_bytes = sum(path.stat().st_size for path in paths)
        limit_s = _BASE_S + size_bytes // _BYTES_PER_S
        request = {
            "limit_s": limit_s,
            "limit_bytes": _BASE_BYTES + 3 * size_bytes,
            "paths": [str(path) for path in paths],
            "adapters": [(str(path), scale) for path, scale in trial.adapters],
            "named": [(name, str(path)) for name, path in trial.named],
            "params": trial.params and asdict(trial.params),
        }
        command = [sys.executable, "-m", __name__, json.dumps(request)]
        # Without a GPU: it would reserve more addresses than the limit allows.
        env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        with subprocess.Popen(command, stdin=null, stdout=pipe, stderr=null, env=env) as child:
            self._child = child
            if self._is_stopping:
                child.kill()
            try:
                output, _ = child.communicate(timeout=_PATIENCE * limit_s)
            except subprocess.TimeoutExpired:
                child.kill()
                return Verdict(f"it took longer than {_PATIENCE * limit_s} seconds to load"), False
            finally:
                self._child = None
        return _verdict(output, child.returncode)

    def interrupt(self) -> None:
        """End a child that runs. Any thread; for shutdown."""
        self._is_stopping = True
        if (child := self._child) is not None:
            child.kill()

    def _read(self) -> dict[str, Verdict]:
        """What the file says; what is of an older version, or damaged, is left out."""
        verdicts = {}
        with suppress(OSError, ValueError, AttributeError, RecursionError):
            for key, fields in json.loads(self._file.read_bytes()).items():
                with suppress(KeyError, TypeError, ValueError, AttributeError):
                    verdicts[key] = Verdict.of(fields)
        return verdicts

    def _save(self) -> None:
        # Another process may have tried others meanwhile. What is lost if both save at once is tried again.
        self._verdicts = self._read() | self._verdicts
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps({key: asdict(one) for key, one in self._verdicts.items()})
            write_atomically(self._file, content.encode())


def _stamp(path: Path) -> tuple[int, ...]:
    with suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns
    return ()


def _verdict(output: bytes, status: int) -> tuple[Verdict, bool]:
    """What a child's end means, and whether it would be the same another time."""
    if status:
        _log.warning("probe_died", status=status)
    if status == -signal.SIGKILL:
        return Verdict("the process that tried it was killed"), False
    lines = output.decode("utf-8", "replace").strip().splitlines()
    with suppress(ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError):
        return Verdict.of(json.loads(lines[-1])), True
    if status == -signal.SIGXCPU:
        return Verdict("loading it took too much time"), True
    return Verdict(f"loading it ended the process that tried ({_ending(status)})"), True


def _ending(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit {status}"


def _try(
    paths: Sequence[Path], adapters: Sequence[tuple[str, float]], named: Sequence[tuple[str, str]]
) -> str:
    """In the child: load, render, compute."""
    try:
        model = _load(paths, adapters, named)
        vocab = model.vocab
        text = "Hello"
        if model.can_generate:
            template = ChatTemplate(model.chat_template or CHATML, control_texts=vocab.control_texts)
            texts = [text := _rendered(template)]
            if model.tool_template is not None:
                tool_template = ChatTemplate(model.tool_template, control_texts=vocab.control_texts)
                texts.append(_rendered(tool_template, Tool("get_time", "Tell the time")))
            if (length := max(map(len, texts))) > _MAX_PROMPT_LENGTH:
                return f"its chat template makes {length} characters of one word"
        tokens = vocab.tokenize(text, parse_special=True, add_special=True)[:32]
        if not model.can_generate:
            return _try_input(model, tokens)
        return _try_computing(model, tokens, [name for name, _ in named])
    except TemplateSyntaxError as error:
        return f"its chat template is not valid Jinja ({error})"
    except NexaError as error:
        return error.reason if isinstance(error, ModelFileError) else str(error)
    except TemplateBoundsError as error:
        return f"its chat template is refused: {error.message}"
    except MemoryError:
        return "loading it took too much memory"


def _load(
    paths: Sequence[Path], adapters: Sequence[tuple[str, float]], named: Sequence[tuple[str, str]]
) -> Model:
    model = Model.load(*paths, gpu_layers=0)
    for path, scale in adapters:
        model.add_adapter(Path(path), scale)
    for name, path in named:
        model.name_adapter(name, Path(path))
    return model


def _try_input(model: Model, tokens: Tokens) -> str:
    """In the child, for a model that only embeds or ranks."""
    EmbeddingContext(model, max_tokens=64, num_threads=1).embed([tokens])
    if model.is_reranker:
        check_scores(model)
    return ""


def _try_computing(model: Model, tokens: Tokens, named: Sequence[str]) -> str:
    """In the child, for a model that generates, with each adapter at its strongest."""
    context = Context(model, ContextParams(256, 1, 64, 1, 1))
    if problem := _compute(context, tokens, NO_ADAPTERS):
        return problem
    for name in named:
        for scale in (MAX_SCALE, -MAX_SCALE):
            if problem := _compute(context, tokens, ((name, scale),)):
                return f"with its LoRA adapter {name} {problem}"
    return ""


def _compute(context: Context, tokens: Tokens, adapters: AdapterSet) -> str:
    context.use_adapters(adapters)
    context.remove(0)
    batch = context.make_batch()
    batch.add(0, tokens, 0, wants_logits=True)
    status = context.decode(batch)
    is_sane = status is DecodeStatus.OK and bool(np.isfinite(context.logits(1)).all())
    return "" if is_sane else f"it computes no answer ({status.name.lower()})"


def _rendered(template: ChatTemplate, *tools: Tool) -> str:
    """A short chat's prompt. A template may want other roles; what counts is that it ends, and in memory."""
    try:
        return template.render(Conversation((Message(Role.USER, "Hello"),), tools)).text
    except NexaError as error:
        if isinstance(error.__context__, MemoryError | TemplateBoundsError):
            raise error.__context__ from None
        return "Hello"


def _say(verdict: Verdict) -> None:
    sys.stdout.write(json.dumps(asdict(verdict)) + "\n")
    sys.stdout.flush()


def _main() -> None:
    configure_logging("ERROR")  # or the log would be among the verdicts
    request = json.loads(sys.argv[1])
    limit_s, limit_bytes = request["limit_s"], request["limit_bytes"]
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # not on every system
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    paths = [Path(name) for name in request["paths"]]
    if request["adapters"] or request["named"]:
        _say(Verdict("with its LoRA adapters it ended the process that tried"))
    problem = _try(paths, request["adapters"], request["named"])
    _say(Verdict(problem))
    if not problem and request["params"]:
        with suppress(NexaError, MemoryError):
            _say(Verdict(problem, plan_memory(paths, ContextParams(**request["params"]))))


if __name__ == "__main__":
    _main()
