"""How a conversation is answered, with the bundled model and the dialects of others."""

from dataclasses import replace

from nexa_runtime.chat.dialects.harmony import Harmony
from nexa_runtime.chat.messages import Conversation, Message, Role
from nexa_runtime.serving.answering import answer_chat, render_chat
from tests.support import LiveServer


def test_a_dialect_of_channels_is_read_without_tools_too(server: LiveServer) -> None:
    model = replace(server.loaded, dialect=Harmony({"<|channel|>": 7}))
    conversation = Conversation((Message(Role.USER, "Hello"),))
    answering = answer_chat(model, conversation, render_chat(model, conversation, 1000), None)
    assert answering.markers[7].endswith("<|channel|>")
    assert answering.make_parser is not None
    parser = answering.make_parser()
    channel = answering.markers[7]
    text = f"{channel}analysis<|message|>Hm.<|end|><|start|>assistant{channel}final<|message|>Hello."
    parts = [*parser.feed(text), *parser.finish()]
    assert "".join(one.reasoning for one in parts) == "Hm."
    assert "".join(one.content for one in parts) == "Hello."
