"""DeepSeek's own markup, since V3.2: tags for each call and each of its arguments.

Owns the family's texts, their parser and their grammar. ``registry`` chooses it.
"""

from collections.abc import Mapping, Sequence

from nexa_runtime.chat.dialects.base import MARK, Dialect, Parser, ReasoningTags, lark_json, plain
from nexa_runtime.chat.dialects.lark_rules import Opened, Rules, free, text_body
from nexa_runtime.chat.dialects.reading import Steps, Stops
from nexa_runtime.chat.dialects.reasoning import with_reasoning
from nexa_runtime.chat.dialects.string_rules import texts_of
from nexa_runtime.chat.dialects.tool_schemas import STRING, Schema, ToolSchemas
from nexa_runtime.chat.dialects.words import until
from nexa_runtime.chat.dialects.xml_calls import XmlCallParser, parameters
from nexa_runtime.chat.messages import Tool

_BAR = "\uff5c"
DSML = f"{_BAR}DSML{_BAR}"
"""Inside every tag; a token of its own in DeepSeek's vocabularies."""
_BLOCKS = ("function_calls", "tool_calls")
"""Around all calls: V3.2's word, V4's word."""
_KEY = r'/[^\s<>"]{1,64}/'
"""The name of a parameter that no schema names."""
_TAG_END = ">\n"
_TEXT, _JSON = '" string="true">', '" string="false">'
"""Behind the name of a parameter: what its value is written as."""


class DsmlParser(XmlCallParser):
    """Makes JSON of the arguments: a tag says whether its value is text or already JSON."""

    def __init__(self, dialect: Dialect, tools: Sequence[Tool], *, is_constrained: bool) -> None:
        mark = dialect.marked(DSML)
        self._ends = {f"<{mark}{word}>": f"</{mark}{word}>" for word in _BLOCKS}
        self._invoke, self._invoke_end = f'<{mark}invoke name="', f"</{mark}invoke>"
        self._parameter, self._parameter_end = f'<{mark}parameter name="', f"</{mark}parameter>"
        super().__init__(tools, self._ends, is_constrained=is_constrained)
        self._key_end, self._value_end = Stops(['"']), Stops([self._parameter_end])

    def _block(self, trigger: str) -> Steps[None]:
        yield from self._expect(self._invoke)
        is_call = True
        while is_call:
            yield from self._one()
            yield from self._reader.space()
            self._begin()
            is_call = yield from self._reader.literal(self._invoke)
        yield from self._reader.literal(self._ends[trigger])

    def _one(self) -> Steps[None]:
        """Reads a call from its name on."""
        self._open((yield from self._reader.name()))
        yield from self._expect('">')
        yield from self._reader.space()
        while not (yield from self._reader.literal(self._invoke_end)):
            yield from self._expect(self._parameter)
            key: list[str] = []
            yield from until(self._reader, self._key_end, key.append)
            self._start(plain("".join(key)))
            yield from self._tagged()
            yield from self._reader.space()
        self._close()

    def _tagged(self) -> Steps[None]:
        """Reads a value behind the name of its parameter."""
        yield from self._expect('string="')
        if (yield from self._reader.literal('true">')):
            yield from self._bare(self._value_end)
        else:
            yield from self._expect('false">')
            yield from self._reader.space()
            yield from self._json(self._add)
            yield from self._expect(self._parameter_end)


class DeepSeekDsml(Dialect):
    """DeepSeek V3.2 and V4."""

    name = "deepseek_dsml"
    markers = (DSML, "<think>", "</think>")
    reasoning = ReasoningTags("<think>", "</think>")

    def __init__(self, special_texts: Mapping[str, int], template: str = "") -> None:
        super().__init__(special_texts, template)
        self._word = _BLOCKS["tool_calls>" in template]

    @classmethod
    def fits(cls, template: str) -> bool:
        return DSML in template

    def parser(self, tools: Sequence[Tool], *, is_reasoning: bool = False, is_constrained: bool) -> Parser:
        parser = DsmlParser(self, tools, is_constrained=is_constrained)
        return with_reasoning(self, parser, is_reasoning=is_reasoning)

    def grammar(self, tools: Sequence[Tool], *, is_forced: bool, is_parallel: bool) -> str:
        rules = Rules()
        call = rules.rule(" | ".join(self._call(rules, tool, is_forced=is_forced) for tool in tools))
        calls = f"{call}{'+' if is_parallel else ''}"
        rest = rules.rule(f"{self.lark(self._word + _TAG_END)} {calls} {self.lark(f'</{DSML}{self._word}>')}")
        if is_forced:
            return rules.grammar(f"{self.lark('<' + DSML)} {rest}")
        return free(rules, self, [Opened(DSML, rest)], is_parallel=is_parallel)

    def _call(self, rules: Rules, tool: Tool, *, is_forced: bool) -> str:
        """A call, its arguments in the order of the schema."""
        schemas = ToolSchemas(tool)

        def member(key: str | None, schema: Schema) -> str:
            head = f'<{DSML}parameter name="'
            name = rules.terminal(_KEY) if key is None else ""
            return f"{self.lark(head + (key or ''))} {name} ({self._value(rules, schemas, schema)})"

        inner = parameters(
            schemas, member, lambda key: '"' not in key and MARK not in key,
            is_exact=is_forced or tool.is_strict,
        )  # fmt: skip
        head, end = self.lark(f'<{DSML}invoke name="{tool.name}">\n'), self.lark(f"</{DSML}invoke>\n")
        return rules.rule(f"{head} {inner} {end}")

    def _value(self, rules: Rules, schemas: ToolSchemas, schema: Schema) -> str:
        """A value and its tags: as bare text, as JSON, or, where the schema leaves that open, as either."""
        value, end = schemas.value(schema), f"</{DSML}parameter>\n"
        texts = texts_of(value)
        forms = []
        if texts:
            forms.append(f"{self.lark(_TEXT)} {text_body(rules, self, texts, end)}")
        if not texts or value.types != STRING:
            as_json = rules.rule(lark_json(schemas.alone(schema)))
            forms.append(f"{self.lark(_JSON)} {as_json} {self.lark(end)}")
        return " | ".join(forms)
