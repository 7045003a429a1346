"""Entry point of ``nexa-runtime`` and ``nexa``: runs the commands and turns what ends them into exit codes.

Imports the rest only inside ``main``, so that Ctrl-C is quiet from the first moment. 0: done. 1: it could not
be done (one sentence on stderr). 2: wrong usage. 130: interrupted.
"""

import os
import sys


def main() -> None:
    """Run the command line."""
    # A closed standard stream is None here; the null device takes its place.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(130)


def _run() -> None:
    from nexa_runtime.cli.main import app
    from nexa_runtime.errors import NexaError

    try:
        app()
    except NexaError as error:
        _say(str(error))
        sys.exit(1)
    except OSError as error:
        # Standard output cannot be written; Python would complain again when it flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            _say(f"{error.strerror or error}")
        sys.exit(1)


def _say(sentence: str) -> None:
    sys.stderr.write(f"{os.path.basename(sys.argv[0])}: {sentence}\n")
