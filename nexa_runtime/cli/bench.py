"""``nexa-runtime bench``: how fast this machine is with a model, without a server.

Owns the words and the document. The model is loaded in this process as ``run`` does, and nothing else uses
it; ``serving/benchmark`` measures. ``main`` calls it.
"""

from importlib import metadata

from nexa_runtime.cli import output as words
from nexa_runtime.cli.loading import load_default
from nexa_runtime.cli.output import Document, Output
from nexa_runtime.config import Settings
from nexa_runtime.serving.benchmark import Speed, measure_speed
from nexa_runtime.serving.loaded import LoadedModel
from nexa_runtime.serving.machine import is_busy
from nexa_runtime.serving.pool import ModelPool


def bench(settings: Settings, output: Output) -> None:
    """Measure the model that the settings name, and say how fast it is.

    Raises ``NexaError``, and ``KeyboardInterrupt`` when it was interrupted.
    """
    was_busy = is_busy()
    pool, loaded = load_default(settings)
    try:
        output.say(f"Measuring {loaded.id}; that takes about half a minute, longer for a large model.")
        if was_busy:
            output.say("The machine was busy in the last minute: it may be faster than these numbers say.")
        speed = measure_speed(loaded)
        gpu_layers = _gpu_layers(pool, loaded, settings)
        document = _document(loaded, speed, gpu_layers, was_busy=was_busy)
        output.result(document, f"{_facts(loaded, speed, gpu_layers)}\n\n{_table(speed)}")
    finally:
        loaded.close()


def _gpu_layers(pool: ModelPool, loaded: LoadedModel, settings: Settings) -> int:
    """Layers of the model that a GPU computes."""
    if not loaded.model.is_on_gpu:
        return 0
    source = pool.library.default
    of_catalog = source.spec.engine.gpu_layers if source is not None and source.spec is not None else None
    asked = settings.model.gpu_layers if of_catalog is None else of_catalog
    return loaded.model.num_layers if asked < 0 else min(asked, loaded.model.num_layers)


def _document(loaded: LoadedModel, speed: Speed, gpu_layers: int, *, was_busy: bool) -> Document:
    gaps = speed.gaps
    return {
        "model": loaded.id,
        "description": loaded.model.description,
        "size_bytes": loaded.model.size_bytes,
        "gpu_layers": gpu_layers,
        "layers": loaded.model.num_layers,
        "threads": {"decode": speed.threads.decode, "prompt": speed.threads.prompt},
        "slots": loaded.slots,
        "kv_cells": loaded.num_cells,
        "llama_cpp_python": _library_version(),
        "machine_was_busy": was_busy,
        "prompt_tokens": speed.num_prompt_tokens,
        "prompt_tokens_per_s": round(speed.prompt_tokens_per_s, 1),
        "first_token_ms": _ms(speed.first_token_s),
        "cached_tokens": speed.num_cached_tokens,
        "cached_first_token_ms": _ms(speed.cached_first_token_s),
        "output": [
            {"streams": one.num_streams, "tokens_per_s": round(one.tokens_per_s, 1)} for one in speed.outputs
        ],
        "token_gap_ms": gaps
        and {"alone": _ms(gaps.alone_s), "median": _ms(gaps.median_s), "worst": _ms(gaps.worst_s)},
    }


def _facts(loaded: LoadedModel, speed: Speed, gpu_layers: int) -> str:
    model, threads = loaded.model, speed.threads
    count = str(threads.decode)
    if threads.decode != threads.prompt:
        count = f"{threads.decode} for one answer, {threads.prompt} for prompts and several answers"
    backend = f"GPU ({gpu_layers} of {model.num_layers} layers)" if gpu_layers else "CPU"
    sizes = f"{words.format_count(model.num_parameters)} parameters, {words.format_bytes(model.size_bytes)}"
    return words.facts(
        [
            ("model", f"{loaded.id} ({model.description}, {sizes})"),
            ("backend", f"{backend}, llama-cpp-python {_library_version()}"),
            ("threads", count),
            ("slots", f"{loaded.slots}, with {loaded.num_cells} KV cells"),
        ]
    )


def _table(speed: Speed) -> str:
    prompt = f"a prompt of {speed.num_prompt_tokens} tokens"
    rows = [
        (prompt, f"{speed.prompt_tokens_per_s:.1f}", "tokens/s"),
        ("its first token", *_shown_ms(speed.first_token_s)),
        (
            f"first token where {speed.num_cached_tokens} of them are cached",
            *_shown_ms(speed.cached_first_token_s),
        ),
    ]
    for one in speed.outputs:
        name = "1 answer" if one.num_streams == 1 else f"{one.num_streams} answers at once"
        rows.append((name, f"{one.tokens_per_s:.1f}", "tokens/s"))
    if (gaps := speed.gaps) is not None:
        rows += [
            ("between two tokens of an answer", *_shown_ms(gaps.alone_s)),
            (f"the same while {prompt} arrives, median", *_shown_ms(gaps.median_s)),
            (f"the same while {prompt} arrives, worst", *_shown_ms(gaps.worst_s)),
        ]
    return words.table(("what", "speed", ""), rows, right=(1,))


def _library_version() -> str:
    return metadata.version("llama-cpp-python")


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)


def _shown_ms(seconds: float) -> tuple[str, str]:
    milliseconds = seconds * 1e3
    return f"{milliseconds:.{1 if milliseconds < 100 else 0}f}", "ms"
