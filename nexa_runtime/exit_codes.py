"""What a process ends with.

Owns the numbers; the README has the same table. ``cli/entry`` gives them to errors, and whatever ends the
process itself takes them from here.
"""

DONE = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
NOT_AUTHORISED = 4
NO_SPACE = 5
DAMAGED = 6
NETWORK = 7
CUT_SHORT = 8
"""A second signal came while the server ended: requests were cut."""
ENGINE_HUNG = 70
"""A step of the engine did not end: a supervisor starts the server again."""
INTERRUPTED = 130
"""SIGINT, anywhere but in a server that runs."""
TERMINATED = 143
"""SIGTERM, the same: also while the server loads its model."""
