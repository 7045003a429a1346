"""Models with a sliding window: a cached prefix gives the answer that a fresh start gives."""

from pathlib import Path

import gguf
import numpy as np

from nexa_runtime.serving.library import DEMO_PATH
from tests.support import LiveServer, free_settings

WIDTH, INNER, HEADS, HEAD, LAYERS, WINDOW = 64, 128, 4, 16, 4, 32


def write_gemma(path: Path) -> Path:
    """A random-weight gemma2 whose every other layer sees 32 tokens, with the bundled model's tokenizer."""
    writer = gguf.GGUFWriter(path, "gemma2")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(WINDOW)
    writer.add_attn_logit_softcapping(50.0)
    writer.add_final_logit_softcapping(30.0)
    source = gguf.GGUFReader(DEMO_PATH)
    for key, field in source.fields.items():
        if key.startswith("tokenizer."):
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    vocab_size = len(source.fields["tokenizer.ggml.tokens"].data)
    random = np.random.default_rng(2)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * 0.3).astype(np.float32))

    add("token_embd.weight", vocab_size, WIDTH)
    add("output_norm.weight", WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            add(f"{block}{norm}.weight", WIDTH)
        for name in ("q", "k", "v"):
            add(f"{block}attn_{name}.weight", HEADS * HEAD, WIDTH)
        add(block + "attn_output.weight", WIDTH, HEADS * HEAD)
        add(block + "ffn_gate.weight", INNER, WIDTH)
        add(block + "ffn_up.weight", INNER, WIDTH)
        add(block + "ffn_down.weight", WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def complete(server: LiveServer, prompt: list[int]) -> tuple[str, int]:
    body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    answer = server.http.post("/v1/completions", json=body).json()
    cached: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return answer["choices"][0]["text"], cached


def test_a_prefix_far_longer_than_the_window_is_reused_exactly(tmp_path: Path) -> None:
    settings = free_settings(NEXA_MODEL_ID=str(write_gemma(tmp_path / "gemma.gguf")))
    prompt = np.random.default_rng(3).integers(300, 2000, 200).tolist()
    branches = [[*prompt[:cut], 301, 302, 303] for cut in (150, 60, 190)]
    with LiveServer(settings) as server:
        complete(server, prompt)
        warm = [complete(server, branch) for branch in branches]
    for branch, (text, cached), cut in zip(branches, warm, (150, 60, 190), strict=True):
        assert cached == cut
        with LiveServer(settings) as fresh:
            assert complete(fresh, branch) == (text, 0)
