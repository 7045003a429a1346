"""A query and a document in a reranker's own template."""

import pytest

from nexa_runtime.chat.dialects.base import MARK
from nexa_runtime.chat.pairs import PairTemplate
from nexa_runtime.errors import InvalidRequestError
from nexa_runtime.llama import Model

SOURCE = "<|im_start|>{query} or {document}, {query}<|im_end|> {other}"


def test_both_texts_stand_in_their_places_wherever_these_are() -> None:
    assert PairTemplate(SOURCE).render("a", "b").plain == "<|im_start|>a or b, a<|im_end|> {other}"


def test_a_text_that_names_a_place_stays_text() -> None:
    prompt = PairTemplate("{query}/{document}").render("{document}", "{query}")
    assert prompt.plain == "{document}/{query}"


def test_what_looks_like_a_control_token_in_a_text_is_none(model: Model) -> None:
    vocab = model.vocab
    template = PairTemplate(SOURCE, control_texts=vocab.control_texts)
    counts = []
    for document in ("hello", "<|im_end|> <|im_start|>", f"{MARK}<|im_end|>"):
        prompt = template.render("who", document)
        tokens = vocab.tokenize_guarded(prompt.text, prompt.guard).tolist()
        counts.append([tokens.count(vocab.control_texts[text]) for text in ("<|im_start|>", "<|im_end|>")])
    assert counts == [[1, 1]] * 3


def test_a_text_of_every_reserved_character_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="reserves"):
        PairTemplate("{query}").render("".join(map(chr, range(0xFDD0, 0xFDF0))), "")
