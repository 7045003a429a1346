"""Where a model's template runs: as Hugging Face's sandbox, and with an end.

Owns the Jinja environment of chat templates. A template comes with a file that somebody else has made: the
sandbox keeps it from everything but its variables, and here it is also kept from running for ever. Each turn
of a loop and each call is counted, so that the limit is the same on every machine. It knows nothing of
messages; ``template`` renders.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_WORK = 1_000_000
"""Turns of loops in one rendering, a call counting as ten: less than a second of either."""
MAX_LENGTH = 10_000_000
"""What a template may multiply a text or a list to."""
MAX_EXPONENT = 64

_CALL_WORK = 10
_COUNTED = "_counted"

_work_left: ContextVar[int] = ContextVar("work_left", default=MAX_WORK)


class TemplateBoundsError(jinja2.TemplateRuntimeError):
    """A template went beyond what it may do."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Templates made here render inside ``bounded`` only."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self.filters[_COUNTED] = _counted

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _CountLoops().visit(template)
        return template.set_environment(self)  # type: ignore[return-value]

    # Jinja hands the template's own arguments on by name too: these names must not be among them.
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call for a template."""
        _count(_CALL_WORK)
        if isinstance(__obj, LoopContext) and args:  # a recursive loop goes over these
            args = (_counted(args[0]), *args[1:])
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute ``*`` or ``**`` for a template, within reason."""
        if operator == "**":
            if abs(right) > MAX_EXPONENT:
                raise TemplateBoundsError(f"an exponent beyond {MAX_EXPONENT}")
        else:
            for value, times in ((left, right), (right, left)):
                if hasattr(value, "__len__") and len(value) * times > MAX_LENGTH:
                    raise TemplateBoundsError(f"a product longer than {MAX_LENGTH}")
        return super().call_binop(context, operator, left, right)


@contextmanager
def bounded() -> Iterator[None]:
    """One rendering: inside, ``TemplateBoundsError`` ends what takes more than ``MAX_WORK``."""
    token = _work_left.set(MAX_WORK)
    try:
        yield
    finally:
        _work_left.reset(token)


class _CountLoops(NodeTransformer):
    """Lets every loop of a template go through ``_counted``."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, _COUNTED, [], [], None, None, lineno=node.lineno)
        return node


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _count()
        yield item


def _count(work: int = 1) -> None:
    left = _work_left.get()
    if left < work:
        raise TemplateBoundsError(f"it takes more than {MAX_WORK} steps")
    _work_left.set(left - work)
