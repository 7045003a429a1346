"""A trial: a grammar is compiled in a process of its own first, which may hang, grow or die.

Owns that process, and the bounds that llguidance is given. These hold most of what it does, but not all: a
value that must fit two schemas with ``multipleOf`` 997 and 503 takes 5.7 s and 400 MB, sixty patterns in one
``allOf`` never end, and a chain of 3,000 rules or ``$ref`` overflows the stack, which ends the process. None
of this can be interrupted from within. A trial costs 70 ms, so ``constraint`` holds one only where something
of the kind can be in a grammar. This module is also what the process runs, and imports nothing of Nexa
Runtime then.

Measured with a hundred sources made to be slow, on one of two busy cores and with 152,000 tokens: what passes
takes 1.4 s to compile at most, with its trial, and what does not 3.1 s. A mask takes 45 ms at most, accepting
a token 110 ms; without a forced text of 80 kB that is 20 ms and 2 ms.
"""

import resource
import subprocess
import sys
import threading
from enum import Enum

from llguidance import LLMatcher, LLParserLimits

DEADLINE_S = 2.0
"""Of the wall clock; ten times what a schema with 400 fields takes."""
_MAX_BYTES = 2**30
_MAX_CPU_S = 10
_STACK_BYTES = 2 * 2**20
"""A quarter of what the threads have that compile and step through what was tried."""


class Outcome(Enum):
    """``PASSED``: it ended, with or without an error, which compiling it here will show."""

    PASSED = "passed"
    TOO_LONG = "too long"
    DIED = "died"


def limits() -> LLParserLimits:
    """The bounds of every grammar.

    The states of a lexer take 0.3 to 1 kB each. With 152,000 tokens, a text that has a large ``maxLength``
    needs six for each of its characters: 50,000 are enough for 7,800 characters, 10,000 for 1,500.
    """
    return LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_items_in_row=2_000,
        max_lexer_states=50_000,
        verbose_errors=False,
    )


def try_grammar(text: str, deadline_s: float = DEADLINE_S) -> Outcome:
    """Compile ``text`` in another process. Blocks."""
    # -P: else the modules beside this one would hide those of the same names.
    command = [sys.executable, "-P", __file__]
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=deadline_s)
    except subprocess.TimeoutExpired:
        return Outcome.TOO_LONG
    return Outcome.DIED if done.returncode else Outcome.PASSED


def _compile_input() -> None:
    text = sys.stdin.buffer.read().decode()
    LLMatcher.validate_grammar(text, limits=limits())


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_MAX_CPU_S, _MAX_CPU_S))  # should nobody be left to end it
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_compile_input)
    thread.start()
    thread.join()
