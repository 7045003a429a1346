"""The dry run: what llama.cpp says a model will take, without taking it."""

from pathlib import Path

import pytest

from nexa_runtime.errors import ModelFileError
from nexa_runtime.llama import Context, ContextParams, Model, free_gpu_bytes, plan_memory
from nexa_runtime.llama.lib import C, captured_log
from nexa_runtime.serving.library import DEMO_PATH
from nexa_runtime.store.gguf import read_header
from nexa_runtime.store.memory import memory_estimate
from scripts.bench.make_model import SHAPES, Shape, write_model

PARAMS = ContextParams(4096, num_sequence_ids=16, max_rows=512, max_outputs=16, num_threads=2)


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    path = tmp_path / "qwen.gguf"
    write_model(Shape("qwen2", 3, 256, 512, 4, 2, 8192, is_tied=True), DEMO_PATH, path)
    return path


def test_a_plan_says_what_llama_cpp_takes_when_it_is_not_dry(model: Model, qwen: Path) -> None:
    for path in (DEMO_PATH, qwen):
        plan = plan_memory([path], PARAMS)
        real = Model.load(path)
        with captured_log() as lines:
            Context(real, PARAMS).close()
        assert plan.weights_bytes == real.size_bytes
        assert plan.kv_bytes == 4096 * real.kv_cell_bytes
        buffers = [line.split("=")[1].split()[0] for line in lines if "buffer size =" in line]
        assert sum(map(float, buffers)) * 2**20 == pytest.approx(plan.kv_bytes + plan.compute_bytes)
        assert plan.vocab_bytes > 0
        real.close()


def test_a_plan_follows_the_sizes_and_types_of_the_context() -> None:
    plain = plan_memory([DEMO_PATH], PARAMS)
    larger = plan_memory([DEMO_PATH], ContextParams(8192, 16, 512, 16, 2))
    quantised = plan_memory([DEMO_PATH], ContextParams(4096, 16, 512, 16, 2, kv_type_k="q8_0"))
    assert larger.kv_bytes == 2 * plain.kv_bytes
    assert larger.compute_bytes > plain.compute_bytes
    assert quantised.kv_bytes < plain.kv_bytes
    assert larger.weights_bytes == plain.weights_bytes


def test_an_encoder_is_planned_with_its_longest_input(tmp_path: Path) -> None:
    path = tmp_path / "bert.gguf"
    write_model(Shape("bert", 2, 64, 128, 4, 4, 256), DEMO_PATH, path)
    plan = plan_memory([path], PARAMS)
    assert plan.kv_bytes == 0
    assert plan.compute_bytes > 0


def test_the_headers_estimate_is_not_below_the_plan(qwen: Path, tmp_path: Path) -> None:
    tiny = tmp_path / "tiny.gguf"
    write_model(SHAPES["tiny"], DEMO_PATH, tiny)
    for path in (DEMO_PATH, qwen, tiny):
        plan = plan_memory([path], PARAMS).total_bytes
        assert plan <= memory_estimate(read_header(path), 4096, 1) <= plan + 128 * 2**20


def test_what_is_no_model_cannot_be_planned(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(DEMO_PATH.read_bytes()[:100_000])
    with pytest.raises(ModelFileError):
        plan_memory([path], PARAMS)


@pytest.mark.skipif(C.llama_supports_gpu_offload(), reason="this build of llama.cpp may have a GPU")
def test_without_a_gpu_there_is_no_gpu_memory() -> None:
    assert free_gpu_bytes() is None
