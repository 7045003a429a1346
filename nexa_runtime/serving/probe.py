"""Is a file safe to load into the server? It is tried first in a process of its own.

Owns the child process, its limits and the verdicts, which are kept by hash. The child loads the model,
renders one chat with its template and computes one token; whatever it does to itself, the server stays up.
``loading`` asks here before it loads a model of the store for the first time; ``nexa-runtime probe`` too.

    python -m nexa_runtime.serving.probe FILE…    # the child: the last line of stdout is its verdict, as JSON
"""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import numpy as np

from nexa_runtime.chat.messages import Message, Role
from nexa_runtime.chat.template import CHATML, ChatTemplate, TemplateSyntaxError
from nexa_runtime.errors import ModelFileError, NexaError
from nexa_runtime.llama import Context, ContextParams, DecodeStatus, EmbeddingContext, Model
from nexa_runtime.telemetry import get_logger

_PATIENCE = 5
"""How much longer than its processor time a child may take in all: disks are slow, and the box is busy."""
_BASE_S = 20
_BYTES_PER_S = 100_000_000
"""Processor time that a child may take: this, and for each 100 MB a second more."""
_BASE_BYTES = 8 * 2**30
"""Address space that a child may take beside three times the size of the files."""

_log = get_logger("serving.probe")


class Prober:
    """``folder``: where verdicts are kept; where it cannot be written they are kept in memory."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "probes.json"
        self._version = metadata.version("llama-cpp-python")
        self._verdicts: dict[str, str] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._is_stopping = False
        with suppress(OSError, ValueError, AttributeError):
            known = json.loads(self._file.read_text())
            self._verdicts = {str(name): str(verdict) for name, verdict in known.items()}

    def check(self, paths: Sequence[Path], digest: str) -> None:
        """Try a model by its files, unless the verdict on ``digest`` is known. Blocks.

        Raises ``ModelFileError`` with the reason.
        """
        key = f"{digest} {self._version}"
        problem = self._verdicts.get(key)
        if problem is None:
            problem, is_final = self.probe(paths)
            if is_final:
                self._verdicts[key] = problem
                self._save()
        if problem:
            raise ModelFileError(paths[0], problem)

    def probe(self, paths: Sequence[Path]) -> tuple[str, bool]:
        """Why a model cannot be served, empty if it can; and whether that holds for good. Blocks.

        A child that was killed, or that a busy box did not let finish, says nothing about the file.
        """
        size_bytes = sum(path.stat().st_size for path in paths)
        limit_s = _BASE_S + size_bytes // _BYTES_PER_S
        command = [sys.executable, "-m", __name__, str(limit_s), str(_BASE_BYTES + 3 * size_bytes)]
        # Without a GPU: it would reserve more addresses than the limit allows.
        env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        with subprocess.Popen(
            [*command, *map(str, paths)], stdin=null, stdout=pipe, stderr=null, env=env
        ) as child:
            self._child = child
            if self._is_stopping:
                child.kill()
            try:
                output, _ = child.communicate(timeout=_PATIENCE * limit_s)
            except subprocess.TimeoutExpired:
                child.kill()
                return f"it took longer than {_PATIENCE * limit_s} seconds to load", False
            finally:
                self._child = None
        return _verdict(output, child.returncode)

    def interrupt(self) -> None:
        """End a child that runs. Any thread; for shutdown."""
        self._is_stopping = True
        if (child := self._child) is not None:
            child.kill()

    def _save(self) -> None:
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft = self._file.with_suffix(".tmp")
            draft.write_text(json.dumps(self._verdicts))
            draft.replace(self._file)


def _verdict(output: bytes, status: int) -> tuple[str, bool]:
    """What a child's end means, and whether it would be the same another time."""
    lines = output.decode("utf-8", "replace").strip().splitlines()
    with suppress(ValueError, IndexError, KeyError, TypeError):
        return str(json.loads(lines[-1])["problem"]), True
    _log.warning("probe_died", status=status)
    if status == -signal.SIGXCPU:
        return "loading it took too much time", True
    if status == -signal.SIGKILL:
        return "the process that tried it was killed", False
    return f"loading it ended the process that tried ({_ending(status)})", True


def _ending(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit {status}"


def _try(paths: Sequence[Path]) -> str:
    """In the child: load, render, compute."""
    try:
        model = Model.load(*paths, gpu_layers=0)
        vocab = model.vocab
        text = "Hello"
        if not model.is_encoder:
            template = ChatTemplate(model.chat_template or CHATML, control_texts=vocab.control_texts)
            with suppress(NexaError):  # a template may want other roles; what counts is that it ends
                text = template.render([Message(Role.USER, "Hello")]).text
        tokens = vocab.tokenize(text, parse_special=True, add_special=True)[:32]
        if model.is_encoder:
            EmbeddingContext(model, max_tokens=64, num_threads=1).embed([tokens])
            return ""
        context = Context(model, ContextParams(256, 1, 64, 1, 1))
        batch = context.make_batch()
        batch.add(0, tokens, 0, wants_logits=True)
        status = context.decode(batch)
        is_sane = status is DecodeStatus.OK and bool(np.isfinite(context.logits(1)).all())
        return "" if is_sane else f"it computes no answer ({status.name.lower()})"
    except TemplateSyntaxError as error:
        return f"its chat template is not valid Jinja ({error})"
    except NexaError as error:
        return error.reason if isinstance(error, ModelFileError) else str(error)
    except MemoryError:
        return "loading it took too much memory"


def _main() -> None:
    limit_s, limit_bytes = map(int, sys.argv[1:3])
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # not on every system
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    problem = _try([Path(name) for name in sys.argv[3:]])
    sys.stdout.write(json.dumps({"problem": problem}) + "\n")


if __name__ == "__main__":
    _main()
