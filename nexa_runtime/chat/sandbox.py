"""Where a model's template runs: as Hugging Face's sandbox, and with an end.

Owns the Jinja environment of chat templates. A template comes with a file that somebody else has made: the
sandbox keeps it from everything but its variables and what ``allowed`` lists, and every operation that can
take long goes through ``budget``, so that the limit is the same on every machine. Nothing is computed when a
template is compiled. It knows nothing of messages; ``template`` renders.

How an operation comes to be counted: calls, operators, filters and tests go through the environment as Jinja
does it; loops, comparisons, ``~``, slices, literals and output are made filters of ``_OWN_FILTERS`` when the
template is parsed.
"""

from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from nexa_runtime.chat import allowed
from nexa_runtime.chat.budget import TemplateBoundsError, bounded, count, counted, measure, weigh

__all__ = ["MAX_SOURCE_LENGTH", "Sandbox", "TemplateBoundsError", "bounded"]

MAX_SOURCE_LENGTH = 200_000
MAX_NODES = 30_000
"""Parts of one template; the largest that are in use have a few thousand."""

_CALL_WORK = 10
_NODES_PER_STEP = 32
"""Small parts of a body that a turn of a loop, or a call, pays for with one step."""
_CONTAINERS = (str, list, tuple, dict)


class Sandbox(ImmutableSandboxedEnvironment):
    """Templates made here render inside ``bounded`` only."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        self.code_generator_class = _Unfolded
        self.filters = {**allowed.FILTERS, **_OWN_FILTERS}
        self.tests = dict(allowed.TESTS)
        self.globals = dict(allowed.GLOBALS)

    def compile_source(self, source: str) -> jinja2.Template:
        """The template in ``source``. Raises ``jinja2.TemplateSyntaxError``."""
        if len(source) > MAX_SOURCE_LENGTH:
            raise jinja2.TemplateSyntaxError(f"it is longer than {MAX_SOURCE_LENGTH} characters", 1)
        try:
            return self.from_string(source)
        except (RecursionError, MemoryError, SyntaxError):
            reason = "it is nested too deeply"
        except (ValueError, OverflowError):
            reason = "it has a number or text that cannot be read"
        raise jinja2.TemplateSyntaxError(reason, 1)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        if sum(1 for _ in template.find_all(nodes.Node)) > MAX_NODES:
            raise jinja2.TemplateSyntaxError(f"it has more than {MAX_NODES} parts", 1)
        _Counting().visit(template)
        return template.set_environment(self)  # type: ignore[return-value]

    def getattr(self, obj: Any, attribute: str) -> Any:
        """``obj.attribute`` for a template."""
        count()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """``obj[argument]`` for a template."""
        count()
        weigh(argument)
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may look it up."""
        if isinstance(obj, Namespace):
            return super().is_safe_attribute(obj, attr, value)
        return any(attr in names for cls, names in allowed.METHODS.items() if isinstance(obj, cls))

    def wrap_str_format(self, value: Any) -> None:
        """``allowed`` checks ``str.format`` itself."""

    # Jinja hands the template's own arguments on by name too: these names must not be among them.
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call for a template."""
        count(_CALL_WORK + len(args) + len(kwargs))
        if isinstance(__obj, LoopContext) and args:  # a recursive loop goes over these
            args = (counted(args[0]), *args[1:])
        elif isinstance(getattr(__obj, "__self__", None), _CONTAINERS):
            return allowed.call_method(__obj, args, _own(kwargs))
        elif not isinstance(__obj, Macro | BlockReference | LoopContext):
            for value in (*args, *_own(kwargs).values()):
                weigh(value)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute for a template, within reason."""
        return allowed.binary(operator, self.binop_table[operator], left, right)


class _Generation(Extension):
    """``{% generation %}`` marks, for training, what the assistant says. Here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Unfolded(CodeGenerator):
    """Jinja computes what it prints beforehand if it can, also with ``optimized`` off."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Any, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


class _Counting(NodeTransformer):
    """Lets what Jinja does by itself go through ``_OWN_FILTERS``."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self._visit_body(node)
        node.iter = _filtered(node.iter, "(counted)")
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        length = sum(len(one.data) if isinstance(one, nodes.TemplateData) else 0 for one in node.nodes)
        shown = [
            one if isinstance(one, nodes.TemplateData) else _filtered(one, "(shown)") for one in node.nodes
        ]
        node.nodes = [_filtered(nodes.Const("", lineno=node.lineno), "(shown)", length), *shown]
        return node

    def visit_FilterBlock(self, node: nodes.FilterBlock) -> nodes.FilterBlock:
        self.generic_visit(node)
        node.filter = _filtered(node.filter, "(shown)")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "(concatenated)")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "(weighed)")
        for operand in node.ops:
            is_search = operand.op in ("in", "notin")
            operand.expr = _filtered(operand.expr, "(searched)" if is_search else "(weighed)")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, "(measured)")
        return node

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "(measured)")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "(measured)") if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        for pair in node.items:
            pair.key = _filtered(pair.key, "(weighed)")
        return _filtered(node, "(measured)")

    def visit_Const(self, node: nodes.Const) -> nodes.Const:
        if isinstance(node.value, int) and node.value.bit_length() > allowed.MAX_BITS:
            _refuse(node, f"an integer of more than {allowed.MAX_BITS} bits")
        if isinstance(node.value, float) and node.value * 0 != 0:
            _refuse(node, "a number that is too large")
        return node

    def visit_ScopedEvalContextModifier(self, node: nodes.ScopedEvalContextModifier) -> NoReturn:
        _refuse(node, "autoescape is not for prompts")

    def _visit_body(self, node: nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block) -> nodes.Node:
        size = sum(1 for one in node.body for _ in one.find_all(nodes.Node))
        self.generic_visit(node)
        paid = nodes.Const("", lineno=node.lineno)
        charge = _filtered(paid, "(paid)", size // _NODES_PER_STEP)
        node.body.insert(0, nodes.ExprStmt(charge, lineno=node.lineno))
        return node

    visit_Macro = visit_CallBlock = visit_Block = _visit_body


def _own(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What the template itself hands on; Jinja adds all variables of the loop, which no function gets."""
    return {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}


def _filtered(node: Any, name: str, *arguments: int) -> nodes.Filter:
    args: list[nodes.Expr] = [nodes.Const(one, lineno=node.lineno) for one in arguments]
    return nodes.Filter(node, name, args, [], None, None, lineno=node.lineno)


def _refuse(node: nodes.Node, reason: str) -> NoReturn:
    raise jinja2.TemplateSyntaxError(reason, node.lineno)


def _weighed(value: Any) -> Any:
    weigh(value)
    return value


def _searched(value: Any) -> Any:
    if not isinstance(value, dict):
        weigh(value)
    return value


def _paid(_: str, work: int) -> None:
    count(work)


_OWN_FILTERS = {
    "(concatenated)": allowed.concat,
    "(counted)": counted,
    "(measured)": measure,
    "(paid)": _paid,
    "(searched)": _searched,
    "(shown)": allowed.show,
    "(weighed)": _weighed,
}
