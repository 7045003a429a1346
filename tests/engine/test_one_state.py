"""Recurrent models, whose state is one piece: reused whole or not at all, and never wrong."""

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from nexa_runtime.serving.library import DEMO_PATH
from tests.support import LiveServer, free_settings

WIDTH, INNER, STATE, CONV, RANK, LAYERS = 64, 128, 8, 4, 8, 2


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight mamba with the bundled model's tokenizer."""
    path = tmp_path_factory.mktemp("mamba") / "mamba.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(LAYERS)
    writer.add_ssm_conv_kernel(CONV)
    writer.add_ssm_inner_size(INNER)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(RANK)
    writer.add_layer_norm_rms_eps(1e-5)
    source = gguf.GGUFReader(DEMO_PATH)
    for key, field in source.fields.items():
        if key.startswith("tokenizer."):
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    vocab_size = len(source.fields["tokenizer.ggml.tokens"].data)
    random = np.random.default_rng(1)

    def add(name: str, *shape: int, centre: float = 0.0) -> None:
        values = random.standard_normal(shape) * 0.3 + centre
        writer.add_tensor(name, values.astype(np.float32))

    add("token_embd.weight", vocab_size, WIDTH)
    add("output_norm.weight", WIDTH, centre=1.0)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        add(block + "attn_norm.weight", WIDTH, centre=1.0)
        add(block + "ssm_in.weight", 2 * INNER, WIDTH)
        add(block + "ssm_conv1d.weight", INNER, CONV)
        add(block + "ssm_conv1d.bias", INNER)
        add(block + "ssm_x.weight", RANK + 2 * STATE, INNER)
        add(block + "ssm_dt.weight", INNER, RANK)
        add(block + "ssm_dt.bias", INNER, centre=-2.0)
        writer.add_tensor(block + "ssm_a", -np.exp(random.random((INNER, STATE))).astype(np.float32))
        add(block + "ssm_d", INNER, centre=1.0)
        add(block + "ssm_out.weight", WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def server(mamba: Path) -> Iterator[LiveServer]:
    with LiveServer(free_settings(NEXA_MODEL_ID=str(mamba), NEXA_SLOTS=3)) as live:
        yield live


def complete(server: LiveServer, prompt: object, max_tokens: int) -> tuple[str, int]:
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    answer = server.http.post("/v1/completions", json=body).json()
    cached: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return answer["choices"][0]["text"], cached


def test_only_a_whole_state_is_continued_and_answers_stay_the_same(server: LiveServer) -> None:
    assert server.loaded.model.has_one_state
    prompt = server.loaded.model.vocab.tokenize("The sea is blue and the sky", parse_special=False).tolist()
    first, cached = complete(server, prompt, 8)
    assert cached == 0
    again, cached = complete(server, prompt, 8)
    assert (again, cached) == (first, 0)  # the state has gone past the prompt: of no use to it
    _, cached = complete(server, [*prompt[:-2], 5, 6], 8)
    assert cached == 0
    assert server.is_idle()


def test_a_prompt_that_continues_a_whole_answer_reuses_its_state(server: LiveServer) -> None:
    vocab = server.loaded.model.vocab
    prompt = vocab.tokenize("One two three", parse_special=False).tolist()
    complete(server, prompt, 1)  # computes the prompt and nothing more
    longer = [*prompt, 7, 8, 9]
    text, cached = complete(server, longer, 6)
    assert cached == len(prompt)
    with LiveServer(free_settings(NEXA_MODEL_ID=str(server.loaded.model.path), NEXA_SLOTS=3)) as fresh:
        assert complete(fresh, longer, 6) == (text, 0)
