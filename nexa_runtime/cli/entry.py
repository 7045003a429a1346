"""Entry point of ``nexa-runtime`` and ``nexa``: runs the commands and turns what ends them into exit codes.

Imports the rest only inside ``main``, so that Ctrl-C is quiet from the first moment. An error is one sentence
on stderr, or with ``--json`` one document on stdout.

SIGTERM has a handler from the first moment too: the first process of a container would ignore it without.

Deliberate: Ctrl-C may come while C calls back into Python, as llama.cpp does with each line of its log, or in
a finalizer. An exception goes nowhere from there, so the interrupt is sent again a moment later.
"""

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType

from nexa_runtime import exit_codes

_AGAIN_S = 0.05


def main() -> None:
    """Run the command line."""
    # A closed standard stream is None here; the null device takes its place.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    signal.signal(signal.SIGTERM, _terminate)
    if sys.argv[1:2] == ["serve"] and not os.isatty(0):
        # Until there is something to reload: a supervisor's reload must not end a server that still loads.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.unraisablehook = _on_ignored
    try:
        sys.exit(_run())
    except KeyboardInterrupt:
        sys.exit(exit_codes.INTERRUPTED)


def exit_code(error: Exception) -> int:
    """What the process ends with for an error of ours."""
    from nexa_runtime import errors

    codes = {
        errors.UsageError: exit_codes.USAGE,
        errors.NotFoundError: exit_codes.NOT_FOUND,
        errors.HubAccessError: exit_codes.NOT_AUTHORISED,
        errors.NoSpaceError: exit_codes.NO_SPACE,
        errors.IntegrityError: exit_codes.DAMAGED,
        errors.ModelFileError: exit_codes.DAMAGED,
        errors.HubUnavailableError: exit_codes.NETWORK,
    }
    return next((code for cls, code in codes.items() if isinstance(error, cls)), exit_codes.FAILED)


def _terminate(number: int, frame: FrameType | None) -> None:
    """At once, as without a handler: what is on disk is whole at any moment, and no import swallows it."""
    os._exit(exit_codes.TERMINATED)


def _on_ignored(ignored: "sys.UnraisableHookArgs") -> None:
    """What was raised where nobody can catch it; an interrupt is sent again."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(ignored)


def _run() -> int:
    from nexa_runtime.errors import NexaError

    as_json = _wants_json(sys.argv[1:])
    try:
        return _run_for_program() if as_json else _run_for_person()
    except NexaError as error:
        return _report(error.code, _sentence(error), exit_code(error), as_json=as_json)
    except KeyboardInterrupt:
        if as_json:
            _report("interrupted", "Interrupted.", exit_codes.INTERRUPTED, as_json=True)
        raise
    except OSError as error:
        return _end_of_output(error, as_json=as_json)


def _run_for_person() -> int:
    from nexa_runtime.cli.main import app

    app()
    return exit_codes.DONE


def _run_for_program() -> int:
    """As for a person, but wrong usage is a document too."""
    import typer

    from nexa_runtime.cli.main import app

    usage_error: type[Exception] = typer.BadParameter.mro()[1]
    try:
        code = app(standalone_mode=False)
    except usage_error as error:
        sentence = getattr(error, "format_message", error.__str__)()
        return _report("usage", sentence, exit_codes.USAGE, as_json=True)
    if code == exit_codes.INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else exit_codes.DONE


def _wants_json(arguments: list[str]) -> bool:
    """Whether ``--json`` is among the flags; what follows ``--`` is none."""
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in flags


def _end_of_output(error: OSError, *, as_json: bool) -> int:
    """A file, or standard output, that cannot be read or written."""
    sentence = error.strerror or str(error)
    if error.filename is not None:
        sentence = f"{error.filename}: {sentence}"
    if as_json and not isinstance(error, BrokenPipeError):
        with suppress(OSError):
            return _report("os_error", sentence, exit_codes.FAILED, as_json=True)
    # Where that is standard output itself, Python would complain again when it flushes it at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return exit_codes.FAILED
    return _report("os_error", sentence, exit_codes.FAILED, as_json=False)


def _sentence(error: Exception) -> str:
    """What an error says, with sizes as every command writes them."""
    from nexa_runtime.cli.output import format_bytes
    from nexa_runtime.errors import NoSpaceError

    if not isinstance(error, NoSpaceError):
        return str(error)
    free, needed = format_bytes(error.free_bytes), format_bytes(error.needed_bytes)
    return f"{error.path} has {free} free, and {needed} are needed."


def _report(code: str, sentence: str, status: int, *, as_json: bool) -> int:
    """Say what went wrong; ``status`` back."""
    from nexa_runtime.cli import output

    if as_json:
        sys.stdout.write(output.json_text(output.error_document(code, sentence, status)) + "\n")
        sys.stdout.flush()
    else:
        sys.stderr.write(f"{os.path.basename(sys.argv[0])}: {output.clean(sentence)}\n")
    return status
