"""Loads the model so that Ctrl-C ends the wait.

Owns the thread, and the sentences for what is not there. ``serve``, ``run`` and ``bench`` call it.

llama.cpp calls back into Python while it loads; an interrupt that arrives there would be swallowed. So it
loads on a thread of its own, and the main thread waits.
"""

import threading
from pathlib import Path

from nexa_runtime.cli.models import not_stored
from nexa_runtime.config import Settings
from nexa_runtime.errors import IntegrityError
from nexa_runtime.serving.loaded import LoadedModel
from nexa_runtime.serving.loading import open_pool
from nexa_runtime.serving.pool import ModelPool
from nexa_runtime.store.gguf import read_header
from nexa_runtime.store.importing import find_files
from nexa_runtime.store.reference import parse_path


def load_pool(settings: Settings) -> ModelPool:
    """The pool with the model that the settings name. Raises ``NexaError``, ``KeyboardInterrupt``."""
    for file in _named_files(settings.model.model_id):
        read_header(file)
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


def load_default(settings: Settings) -> tuple[ModelPool, LoadedModel]:
    """The pool, and the model that the settings name. Raises as ``load_pool``, and when there is none."""
    pool = load_pool(settings)
    if pool.default is not None:
        return pool, pool.default
    library = pool.library
    if library.store.find(library.default_name) is None:
        raise not_stored(library.store, library.default_name, library.catalog)
    raise IntegrityError(pool.default_problem)


def _named_files(name: str) -> tuple[Path, ...]:
    """The files of a model that is named by its path; none for another. Raises ``NexaError``."""
    path = parse_path(name) or (Path(name) if name.lower().endswith(".gguf") else None)
    return () if path is None else find_files(path)
