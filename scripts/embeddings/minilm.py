"""Real sentence embeddings from a server of our own: MiniLM weights to GGUF, served, ranked, compared.

Owns the GGUF that is written (F32, llama.cpp's tensor names, WordPiece in llama.cpp's form) and what the
embeddings must show: a paraphrase is always nearer than an unrelated sentence, and each embedding agrees with
the numpy reference of minilm_model.py. It never fetches weights (the wrapper does), and ends only the server
it started. Exit code 1 when the embeddings do not show it.

    scripts/embeddings/minilm [--to FILE.gguf]
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import httpx
import numpy as np

from scripts.bench.common import BenchError, serving
from scripts.embeddings.minilm_model import SPECIAL_TOKENS, Floats, MiniLM

LEAST_COSINE = 0.999
"""Between an embedding of the server and that of the reference."""

TENANT = "minilm"

TRIPLES = (
    (
        "A man is playing a guitar on the stage.",
        "Someone performs music with a guitar in front of an audience.",
        "The committee postponed the vote on the new tax law.",
    ),
    (
        "How do I reset my password?",
        "I forgot my login credentials and need to change them.",
        "Which vegetables grow well in the shade?",
    ),
    (
        "The company's profits fell sharply in the third quarter.",
        "Earnings of the firm dropped a lot between July and September.",
        "The kitten fell asleep on the warm windowsill.",
    ),
    (
        "Heavy rain caused flooding across the region.",
        "The area was under water after a severe downpour.",
        "Heavy metal bands toured across the region.",
    ),
    (
        "The doctor prescribed antibiotics for the infection.",
        "A physician gave the patient medicine against bacteria.",
        "The pilot announced a delay because of the crosswind.",
    ),
    (
        "Restart the server after you have edited the configuration file.",
        "Changes to the settings take effect once the service is started again.",
        "The waiter brought us the menu and two glasses of water.",
    ),
)
"""A sentence, a paraphrase of it, an unrelated sentence."""

ODD_TEXTS = (
    "Yes",
    "The Café's naïve résumé -- £3,500 (approx.) @ 10:45 a.m.; e-mail: j.doe@example.org!",
    "Antidisestablishmentarianism, pneumonoultramicroscopicsilicovolcanoconiosis & other \u2018words\u2019.",
    "It was late and nobody in the old house by the river had slept, so they talked. " * 14,
)
"""Compared with the reference only: the shortest, signs and accents, words of many pieces, a long one."""

TENSOR_NAMES = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm": "token_embd_norm",
}

LAYER_NAMES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def tensors(model: MiniLM) -> Iterator[tuple[str, Floats]]:
    """Every tensor under llama.cpp's name. The pooler is no part of a mean."""
    names = dict(TENSOR_NAMES)
    for layer in range(model.config["num_hidden_layers"]):
        for theirs, ours in LAYER_NAMES.items():
            names[f"encoder.layer.{layer}.{theirs}"] = f"blk.{layer}.{ours}"
    for name, values in model.weights.items():
        if name.startswith("pooler."):
            continue
        stem, _, kind = name.rpartition(".")
        yield names[name] if name in names else f"{names[stem]}.{kind}", values


def write_gguf(model: MiniLM, path: Path) -> None:
    """Write ``model`` to ``path``, which is never there in part."""
    partial = path.with_name(f"{path.name}.partial")
    writer = gguf.GGUFWriter(partial, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(model.config["max_position_embeddings"])
    writer.add_embedding_length(model.config["hidden_size"])
    writer.add_block_count(model.config["num_hidden_layers"])
    writer.add_feed_forward_length(model.config["intermediate_size"])
    writer.add_head_count(model.config["num_attention_heads"])
    writer.add_layer_norm_eps(model.config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    _add_tokenizer(writer, model)
    for name, values in tensors(model):
        writer.add_tensor(name, values)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _add_tokenizer(writer: gguf.GGUFWriter, model: MiniLM) -> None:
    """WordPiece as llama.cpp has it: no mark inside a word, a phantom space at its beginning."""
    writer.add_token_type_count(model.config["type_vocab_size"])
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")  # llama.cpp's name for the tokenizer of uncased BERT
    forms = [
        token
        if token in SPECIAL_TOKENS
        else token.removeprefix("##")
        if token.startswith("##")
        else f"\u2581{token}"
        for token in model.tokens
    ]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_list(forms)
    writer.add_token_types([control if token in SPECIAL_TOKENS else normal for token in model.tokens])
    writer.add_pad_token_id(model.ids["[PAD]"])
    writer.add_unk_token_id(model.ids["[UNK]"])
    writer.add_bos_token_id(model.ids["[CLS]"])  # llama.cpp's [CLS]; the key below is its older name
    writer.add_uint32("tokenizer.ggml.cls_token_id", model.ids["[CLS]"])
    writer.add_sep_token_id(model.ids["[SEP]"])
    writer.add_mask_token_id(model.ids["[MASK]"])


def ask(client: httpx.Client, model: MiniLM, texts: tuple[str, ...]) -> list[Floats]:
    """The server's embeddings of ``texts``. Raises ``BenchError``, also when it counts other tokens."""
    response = client.post("/v1/embeddings", json={"input": texts}, headers={"X-Tenant-Id": TENANT})
    if response.status_code != 200:
        raise BenchError(f"status {response.status_code}: {response.text[:200]}")
    answer = response.json()
    expected = sum(len(model.tokenize(text)) for text in texts)
    if (counted := answer["usage"]["prompt_tokens"]) != expected:
        raise BenchError(f"the server counts {counted} tokens, the reference {expected}: {texts!r:.200}")
    entries = sorted(answer["data"], key=lambda entry: int(entry["index"]))
    return [np.asarray(entry["embedding"], np.float32) for entry in entries]


def cosine(a: Floats, b: Floats) -> float:
    """Of the angle between two vectors, whatever their lengths."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def check(client: httpx.Client, model: MiniLM) -> list[str]:
    """Print what the embeddings show; what is wrong with them. Raises ``BenchError``."""
    wrong = []
    agreement: list[tuple[float, str]] = []
    print("paraphrase  unrelated  sentence")
    for texts in (*TRIPLES, ODD_TEXTS):
        embeddings = ask(client, model, texts)
        for text, embedding in zip(texts, embeddings, strict=True):
            agreement.append((cosine(embedding, model.embed(model.tokenize(text))), text))
        if texts is ODD_TEXTS:
            continue
        near, far = cosine(embeddings[0], embeddings[1]), cosine(embeddings[0], embeddings[2])
        print(f"{near:10.4f} {far:10.4f}  {texts[0]}")
        if near <= far:
            wrong.append(f"the unrelated sentence ranks first: {texts[0]}")
    least, text = min(agreement)
    print(f"least cosine with the numpy reference, of {len(agreement)} texts: {least:.7f} ({text:.40})")
    if not least >= LEAST_COSINE:
        wrong.append(f"the reference is not met to {LEAST_COSINE}")
    return wrong


def main() -> None:
    """Parse the arguments, convert, serve, check."""
    parser = argparse.ArgumentParser(description="Convert MiniLM to GGUF, serve it, check its embeddings.")
    parser.add_argument(
        "--weights", type=Path, required=True, help="the model's folder (the wrapper says it)"
    )
    parser.add_argument(
        "--to", type=Path, required=True, help="the GGUF file to write; the server's log lies beside it"
    )
    arguments = parser.parse_args()
    model = MiniLM(arguments.weights)
    arguments.to.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(model, arguments.to)
    print(f"{arguments.to}: {arguments.to.stat().st_size / 1e6:.1f} MB")
    server = argparse.Namespace(
        model=arguments.to,
        threads=1,
        slots=4,
        ctx_size=2048,
        start_timeout=60,
        log=arguments.to.with_suffix(".log"),
    )
    try:
        with serving(server, [TENANT]) as url, httpx.Client(base_url=url, timeout=60) as client:
            wrong = check(client, model)
    except BenchError as error:
        sys.exit(str(error))
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
