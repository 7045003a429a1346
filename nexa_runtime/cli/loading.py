"""Loads the model so that Ctrl-C ends the wait.

llama.cpp calls back into Python while it loads; an interrupt that arrives there would be swallowed. So it
loads on a thread of its own, and the main thread waits.
"""

import threading

from nexa_runtime.config import Settings
from nexa_runtime.serving.loading import open_pool
from nexa_runtime.serving.pool import ModelPool


def load_pool(settings: Settings) -> ModelPool:
    """The pool with the model that the settings name. Raises ``NexaError``, ``KeyboardInterrupt``."""
    done: list[ModelPool | BaseException] = []

    def load() -> None:
        try:
            done.append(open_pool(settings))
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            done.append(error)

    thread = threading.Thread(target=load, name="nexa-load", daemon=True)
    thread.start()
    thread.join()
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0]
