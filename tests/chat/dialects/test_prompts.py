"""What is done to messages before a template sees them."""

import pytest

from nexa_runtime.chat.dialects.base import ReasoningTags
from nexa_runtime.chat.dialects.prompts import thoughts_apart
from nexa_runtime.chat.messages import Conversation, Message, Role

TAGS = ReasoningTags("<think>", "</think>")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<think>\nhm\n</think>\n\nYes.", ("hm", "Yes.")),
        (" <think></think>Yes.", (None, "Yes.")),
        ("Yes, </think> is a tag.", (None, "Yes, </think> is a tag.")),
        ("<think>hm", (None, "<think>hm")),
        (None, (None, None)),
    ],
)
def test_thoughts_within_an_assistants_content_are_put_apart(
    content: str | None, expected: tuple[str | None, str | None]
) -> None:
    conversation = Conversation((Message(Role.USER, content or ""), Message(Role.ASSISTANT, content)))
    user, assistant = thoughts_apart(conversation, TAGS).messages
    assert user.content == (content or "")
    assert (assistant.reasoning, assistant.content) == expected


def test_without_tags_nothing_changes() -> None:
    conversation = Conversation((Message(Role.ASSISTANT, "<think>hm</think>Yes."),))
    assert thoughts_apart(conversation, None) is conversation
    assert thoughts_apart(Conversation((Message(Role.ASSISTANT, "<think>hm", reasoning="x"),)), TAGS)
