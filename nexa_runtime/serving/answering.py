"""From a conversation to a prompt, and to how its answer is sampled and read.

Owns what template, dialect and constraint of a model make of one conversation together. What takes long runs
in worker threads; it never sees the engine or the wire. ``generation_service`` calls it.

Deliberate: what follows a tag of reasoning that the prompt itself has opened cannot be constrained from the
first token on. The model reasons then, for a bounded part of its tokens, and is constrained from there.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from nexa_runtime.chat.constraint import Constraint, ConstraintCompiler
from nexa_runtime.chat.dialects.base import Dialect, Parser, UnsupportedSchemaError
from nexa_runtime.chat.dialects.prompts import thoughts_apart
from nexa_runtime.chat.grammar import GrammarKind, GrammarSource
from nexa_runtime.chat.guard import RenderedPrompt
from nexa_runtime.chat.messages import Conversation, Tool, ToolChoice, ToolMode
from nexa_runtime.chat.reasoning import ChannelMask, ReasoningMask
from nexa_runtime.chat.schema import check_schema, closed
from nexa_runtime.chat.template import without_marks
from nexa_runtime.errors import InvalidRequestError
from nexa_runtime.llama import TokenMask
from nexa_runtime.serving.loaded import LoadedModel
from nexa_runtime.serving.prompts import Tokens, check_size, with_bos

_REASONING_PART = 2
"""Where an answer must have a form and reasons first, one in so many of its tokens may be reasoning."""


@dataclass(frozen=True, slots=True)
class Answering:
    """A prompt, and how each of its answers is made: with a mask and a parser of its own, where it has one.

    ``start_mask`` takes the most tokens that the answer may have. ``ignores_stops``: the form of the answer
    says where it ends. ``may_call``: stop texts end its content, and cut no call. ``echo``: text that comes
    before the answer.
    """

    prompt: Tokens
    start_mask: Callable[[int], TokenMask] | None = None
    make_parser: Callable[[], Parser] | None = None
    markers: Mapping[int, str] = field(default_factory=dict)
    ignores_stops: bool = False
    may_call: bool = False
    echo: str = ""


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A conversation's prompt, the tools that its answer may call, and whether it has opened reasoning."""

    prompt: Tokens
    tools: tuple[Tool, ...]
    is_reasoning: bool


def render_chat(model: LoadedModel, conversation: Conversation, max_tokens: int) -> RenderedChat:
    """Render and tokenize. Raises ``InvalidRequestError``."""
    vocab = model.model.vocab
    prompt = render_prompt(model, conversation)
    check_size(vocab, prompt.text, max_tokens=max_tokens, param=conversation.param)
    tokens = with_bos(vocab, vocab.tokenize_guarded(prompt.text, prompt.guard))
    tags = model.dialect.reasoning
    is_reasoning = tags is not None and prompt.text.rstrip().endswith(tags.opening.rstrip())
    return RenderedChat(tokens, callable_tools(conversation), is_reasoning)


def render_prompt(model: LoadedModel, conversation: Conversation) -> RenderedPrompt:
    """The prompt as text. Raises ``InvalidRequestError``."""
    dialect, tools = model.dialect, callable_tools(conversation)
    for tool in conversation.tools:
        check_schema(tool.parameters, tool.param)
    shown = without_marks(conversation if tools else replace(conversation, tools=()))
    template = model.template if not tools or model.tool_template is None else model.tool_template
    return template.render(
        dialect.prepare(thoughts_apart(shown, dialect.reasoning)),
        reasoning_key=dialect.reasoning_key,
        arguments_as_text=dialect.takes_arguments_as_text,
    )


def callable_tools(conversation: Conversation) -> tuple[Tool, ...]:
    """The tools that the answer may call: none, all, or the one that is named."""
    choice = conversation.tool_choice
    if choice.mode is ToolMode.NONE:
        return ()
    if choice.mode is ToolMode.NAMED:
        return tuple(tool for tool in conversation.tools if tool.name == choice.name)
    return conversation.tools


def grammar_of(dialect: Dialect, conversation: Conversation, tools: tuple[Tool, ...]) -> GrammarSource | None:
    """What an answer that may call ``tools`` must look like; None without tools. Its text is made when it is
    compiled.
    """
    if not tools:
        return None
    choice = conversation.tool_choice
    is_parallel = conversation.is_parallel and choice.mode is not ToolMode.NAMED

    def build() -> str:
        fitted = [_fitted(tool, choice) for tool in tools]
        try:
            return dialect.grammar(fitted, is_forced=choice.is_forced, is_parallel=is_parallel)
        except UnsupportedSchemaError as error:
            raise InvalidRequestError(str(error), param="tools") from None

    named = [[tool.name, dict(tool.parameters), tool.is_strict] for tool in tools]
    key = json.dumps([dialect.name, choice.is_forced, is_parallel, named])
    schemas = tuple(tool.parameters for tool in tools)
    return GrammarSource(GrammarKind.DIALECT, key, "tools", build=build, schemas=schemas)


def loosened(
    constraints: ConstraintCompiler, conversation: Conversation, tools: tuple[Tool, ...], tenant_id: str
) -> tuple[Tool, ...]:
    """The tools, where a call is neither forced nor strict with any object in place of the arguments that
    cannot be followed: such schemas are common, and what a model makes of them is mostly right. Blocks.
    """
    if conversation.tool_choice.is_forced:
        return tools
    return tuple(
        tool
        if tool.is_strict or constraints.supports(tool.parameters, tenant_id)
        else replace(tool, parameters={"type": "object"})
        for tool in tools
    )


def answer_chat(
    model: LoadedModel, conversation: Conversation, chat: RenderedChat, constraint: Constraint | None
) -> Answering:
    """How a rendered conversation is answered."""
    dialect, choice = model.dialect, conversation.tool_choice
    is_constrained = bool(chat.tools) and constraint is not None
    is_forced = constraint is not None and (choice.is_forced or not chat.tools)
    start_mask = _start_mask(model, conversation, chat, constraint, must_have_form=is_forced)
    make_parser = None
    if chat.tools or dialect.reasoning is not None or dialect.channel is not None:

        def make_parser() -> Parser:
            return dialect.parser(chat.tools, is_reasoning=chat.is_reasoning, is_constrained=is_constrained)

    return Answering(
        chat.prompt,
        start_mask,
        make_parser,
        markers={} if make_parser is None else dialect.visible_tokens(),
        ignores_stops=bool(chat.tools) and choice.is_forced,
        may_call=bool(chat.tools),
    )


def _start_mask(
    model: LoadedModel,
    conversation: Conversation,
    chat: RenderedChat,
    constraint: Constraint | None,
    *,
    must_have_form: bool,
) -> Callable[[int], TokenMask] | None:
    tags, channel, budget = model.dialect.reasoning, model.dialect.channel, conversation.reasoning_budget
    if channel is not None and budget is not None and not must_have_form:
        return lambda max_tokens: ChannelMask(
            model.model.vocab,
            channel,
            budget=budget,
            inner=None if constraint is None else constraint.start(),
        )
    # An answer that must have a form from the first token on does not open reasoning by itself.
    may_reason = tags is not None and (chat.is_reasoning or not must_have_form)
    if tags is None or not may_reason or (constraint is None and budget is None):
        return None if constraint is None else lambda max_tokens: constraint.start()

    def start(max_tokens: int) -> TokenMask:
        most = budget
        if must_have_form:
            most = min(max_tokens // _REASONING_PART, max_tokens if budget is None else budget)
        inner = None if constraint is None else constraint.start()
        return ReasoningMask(model.model.vocab, tags, is_open=chat.is_reasoning, budget=most, inner=inner)

    return start


def _fitted(tool: Tool, choice: ToolChoice) -> Tool:
    """In forced calls, and in strict ones, an object has the properties that its schema names."""
    if not (choice.is_forced or tool.is_strict):
        return tool
    return replace(tool, parameters=closed(dict(tool.parameters), "tools"))
