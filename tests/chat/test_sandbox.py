"""Templates that strangers made to do harm: each is refused before it takes time or memory."""

import subprocess
import sys

import pytest

from nexa_runtime.chat.messages import Conversation, Message, Role
from nexa_runtime.chat.sandbox import MAX_SOURCE_LENGTH
from nexa_runtime.chat.template import ChatTemplate, TemplateSyntaxError
from nexa_runtime.errors import InvalidRequestError

_LOOP = "{% for a in range(99999) %}"
_END = "{% endfor %}"
_NS = "{% set ns = namespace(x='aaaaaaaaaa', l=[0], n=3, t=(0,)) %}"
_BIG = "{% set big = 'a' * 9000000 %}"


def _many(body: str, times: int = 99999) -> str:
    return _NS + f"{{% for a in range({times}) %}}" + body + _END


ATTACKS = [
    # Loops and calls.
    (_LOOP * 3 + _END * 3, "steps"),
    ("{% set l = range(9999) | list %}" + "{% for a in l %}" * 3 + _END * 3, "steps"),
    ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}", "steps"),
    ("{% for a in [1] recursive %}{{ loop([a, a]) if loop.depth < 60 }}{% endfor %}", "steps"),
    ("{% block b %}{% for a in 'xy' %}{{ self.b() }}{% endfor %}{% endblock %}", "recursion|steps"),
    (_LOOP + "{{ range(99999) | reject | list }}" + _END, "steps"),
    (_LOOP + "{{ range(99999) | map('string') | first }}" * 300 + _END, "steps"),
    ("{{ range(99999) | map(attribute='" + "a." * 9999 + "a') | list }}", "no attribute"),
    ("{% set x = 'a' * 99999 %}" + _LOOP + "{% set a, b = 1, 2 %}" * 900 + _END, "steps|characters"),
    # Numbers.
    (_many("{% set ns.n = ns.n * ns.n %}"), "bits"),
    (_many("{% set ns.n = ns.n + ns.n %}"), "bits"),
    (_many("{% set ns.n = ns.n - (0 - ns.n) %}"), "bits"),
    ("{{ 9 ** 999999999 }}", "exponent"),
    ("{{ 9 ** 64 ** 64 }}", "exponent|bits"),
    ("{{ ('f' * 900000) | int(base=16) // 7 }}", "number"),
    ("{{ ('9' * 900000) | float }}", "number"),
    ("{{ 1.5 | round(999999999, 'floor') }}", "digits"),
    ("{{ 'x' | round(9, 'floor') }}", "number"),
    ("{{ [2] | sum(start=2**63) * 4 }}", "bits"),
    # Texts and lists that grow.
    ("{{ 'x' * 10**9 }}", "longer"),
    ("{{ [0] * 10**9 }}", "longer"),
    ("{{ 10**9 * 'x' }}", "longer"),
    (_many("{% set ns.x = ns.x ~ ns.x %}"), "longer"),
    (_many("{% set ns.x = ns.x + ns.x %}"), "longer"),
    (_many("{% set ns.l = ns.l + ns.l %}"), "longer"),
    (_many("{% set ns.x = [ns.x, ns.x] | join %}"), "longer"),
    (_many("{% set ns.l = [ns.l, ns.l] %}") + "{{ ns.l }}", "longer"),
    (_many("{% set ns.l = [ns.l, ns.l] %}") + "{{ ns.l | string }}", "longer"),
    (_many("{% set ns.l = [ns.l, ns.l] %}") + "{{ ns.l | tojson }}", "longer"),
    (_many("{% set ns.l = [ns.l, ns.l] %}") + "{{ '%s' % ns.l }}", "longer"),
    (_many("{% set ns.l = [ns.l, ns.l] %}") + "{{ ns.l ~ '' }}", "longer"),
    (_many("{% set ns.l = [ns.l, ns.l] %}") + "{{ ns.l | sum(start=[]) }}", "longer|characters"),
    (_many("{% set ns.l = [ns.l, [0]] | sum(start=ns.l) %}"), "longer|characters"),
    # What is compared or hashed is gone through.
    (
        _many("{% set ns.l = [ns.l, ns.l] %}{% set ns.x = [ns.x, ns.x] %}", 60) + "{{ ns.l == ns.x }}",
        "longer",
    ),
    (_many("{% set ns.t = (ns.t, ns.t) %}", 60) + "{{ {ns.t: 1} }}", "longer"),
    (_many("{% set ns.t = (ns.t, ns.t) %}", 60) + "{{ {}[ns.t] }}", "longer"),
    (_many("{% set ns.t = (ns.t, ns.t) %}", 60) + "{{ {}.get(ns.t) }}", "longer"),
    (_many("{% set ns.t = (ns.t, ns.t) %}", 60) + "{{ ns.t in {} }}", "longer"),
    (_many("{% set ns.t = (ns.t, ns.t) %}", 60) + "{{ [ns.t] | unique | list }}", "longer"),
    (
        _many("{% set ns.t = (ns.t, ns.t) %}", 60) + "{% for a in [1] %}{{ loop.changed(ns.t) }}{% endfor %}",
        "longer",
    ),
    (_BIG + "{% set b = big ~ 'b' %}{% set c = big ~ 'c' %}" + _LOOP + "{{ b == c }}" + _END, "characters"),
    (_BIG + _LOOP + "{{ 'b' in big }}" + _END, "characters"),
    (_BIG + _LOOP + "{{ big.startswith(big) }}" + _END, "characters"),
    # Filters and methods that make much of little.
    ("{{ 'a' | replace('', 'b' * 9000000) }}", "longer"),
    (_BIG + "{{ big | replace('a', 'bb') }}", "longer"),
    (_BIG + "{{ big.replace('a', 'bb') }}", "longer"),
    (_BIG + "{{ big.split('a') | length }}", "longer"),
    ("{{ (' ' * 9000000).split() }}", "longer"),
    ("{{ ('\\n' * 9000000).splitlines() }}", "longer"),
    (_BIG + "{{ [big, big] | join }}", "longer"),
    (_BIG + "{{ (range(999) | list) | join(big) }}", "longer"),
    (_BIG + "{{ big.join(['', '', '']) }}", "longer"),
    (_BIG + "{{ big.join(range(999) | map('string')) }}", "longer"),
    ("{{ 'a\\nb' | indent(9000000000) }}", "longer"),
    ("{{ ('a\\n' * 99999) | indent(99999) }}", "longer"),
    ("{{ [1] | tojson(indent=9000000000) }}", "JSON"),
    ("{{ 'x' | list + ('a' * 9000000) | list }}", "steps"),
    ("{{ '%9000000000d' % 1 }}", "width"),
    ("{{ '%*d' % (9000000000, 1) }}", "width"),
    ("{{ '%9000000000d' | format(1) }}", "width"),
    ("{{ '%.9000000000f' % 1 }}", "width"),
    ("{{ '%9000000000d' is odd }}", "number"),
    ("{{ '%9000000000d' is divisibleby 3 }}", "number"),
    (_BIG + "{{ ('%s' * 99) % big }}", "format|longer|arguments"),
    (_BIG + "{{ ('%(a)s' * 99) % {'a': big} }}", "longer"),
    ("{{ '{:9000000000}'.format(1) }}", "formats"),
    ("{{ '{0.__class__}'.format(1) }}", "formats"),
    ("{{ '{a}'.format(a=1) }}", "argument"),
    (_BIG + "{{ ('{}' * 99).format(" + "big, " * 99 + ") }}", "characters"),
    ("{% set a = [] %}{% set x = a.append(a) %}{{ a }}", "appends"),
    ("{% set a = [1] %}{% for b in a %}{% set x = a.append(1) %}{% endfor %}", "steps|characters"),
    ("{{ [].pop() }}", "pop"),
    ("{{ [1].extend([2]) }}", "unsafe"),
    ("{{ [1].insert(0, 2) }}", "unsafe"),
    ("{{ {}.update(a=1) }}", "unsafe"),
    ("{{ '{a:9000000000}'.format_map({'a': 1}) }}", "unsafe"),
    ("{{ 'a'.center(9000000000) }}", "unsafe"),
    ("{{ 'a'.ljust(9000000000) }}", "unsafe"),
    ("{{ 'a'.rjust(9000000000) }}", "unsafe"),
    ("{{ 'a'.zfill(9000000000) }}", "unsafe"),
    ("{{ '\\t'.expandtabs(9000000000) }}", "unsafe"),
    ("{{ 'a'.translate({97: 'b' * 9000000}) }}", "unsafe"),
    ("{{ 'a'.encode() }}", "unsafe"),
    ("{{ (1).to_bytes(9000000000, 'big') }}", "unsafe"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    (_BIG + "{{ big.strip('b' * 9000 ~ 'a') }}", "strips"),
    (_BIG + "{{ big | trim('b' * 9000 ~ 'a') }}", "strips"),
    (_BIG + "{{ big.rsplit('b' ~ 'a' * 900000) }}", "looks for"),
    (_BIG + "{{ big.rfind('b' ~ 'a' * 900000) }}", "looks for"),
    ("{{ strftime_now('%c' * 99999) }}", "date"),
    # Many large ones, one after the other, and what is printed.
    (_BIG + _many("{% set ns.l = ns.l + [big | upper] %}"), "characters"),
    (_BIG + _many("{% set ns.l = ns.l + [big[1:]] %}"), "characters"),
    (_BIG + _LOOP + "{{ big }}" + _END, "characters"),
    (_BIG + "{{ big }}{{ big }}", "longer"),
    (_BIG + _LOOP + "{% filter default(big, true) %}{% endfilter %}" + _END, "characters"),
    (_BIG + "{% set d = {'a': big} %}" + _LOOP + "{% call d.get('a') %}{% endcall %}" + _END, "keyword"),
    (_LOOP + "x" * 9999 + _END, "characters"),
    ("{% macro m() %}" + "x" * 9999 + "{% endmacro %}" + _LOOP + "{% set x = m() %}" + _END, "characters"),
    (_many("{% set ns.l = [ns.l" + ", 0" * 9999 + "] %}"), "characters|steps"),
    # A way around the count.
    (_LOOP + "{{ [''] | map('(shown)', -99999999) | list }}" + _END, "longer"),
    (_LOOP + "{{ [''] | map('(paid)', -99999999) | list }}" + _END, "steps"),
    ("{{ namespace(x=1) }}", "namespace"),
    ("{{ raise_exception('x' * 9000000) }}", "xxx"),
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    ("{% include 'x' %}", "loader"),
]


@pytest.mark.parametrize(("source", "words"), ATTACKS, ids=range(len(ATTACKS)))
def test_what_a_stranger_made_is_refused(source: str, words: str) -> None:
    """Also where it behaves until it is asked something else than what it was tried with."""
    template = ChatTemplate("{% if messages[0].content != 'Hello' %}" + source + "{% endif %}ok")
    assert template.render(Conversation((Message(Role.USER, "Hello"),))).text == "ok"
    with pytest.raises(InvalidRequestError, match=words) as caught:
        template.render(Conversation((Message(Role.USER, "Hi"),)))
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x" * (MAX_SOURCE_LENGTH + 1), "longer than"),
        ("{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}", "nested"),
        ("{{ " + "[" * 9999 + "]" * 9999 + " }}", "nested"),
        ("{{ " + "1+" * 9999 + "1 }}", "nested"),
        ("{{ x" + ".a" * 9999 + " }}", "nested"),
        ("{{ x" + "|string" * 9999 + " }}", "nested"),
        ("{{ " + "not " * 9999 + "x }}", "nested"),
        ("{% if x %}" * 999 + "{% endif %}" * 999, "nested"),
        ("{% for a in x %}" * 99 + "{% endfor %}" * 99, "nested"),
        ("{% if x %}" + "{% elif x %}" * 9999 + "{% endif %}", "nested"),
        ("{{ " + "1 if x else " * 9999 + "1 }}", "nested"),
        ("{{ a < b }}" * 15_000, "parts"),
        ("{{ 0x" + "f" * 9999 + " }}", "bits"),
        ("{{ " + "9" * 9999 + " }}", "cannot be read"),
        ("{{ 1e999 }}", "too large"),
        ("{{ 'a' | center(9000000000) | length }}", "center"),
        ("{{ 'a' | attr('upper') }}", "attr"),
        ("{{ {} | xmlattr }}", "xmlattr"),
        ("{{ lipsum is escaped }}", "escaped"),
        ("{% autoescape true %}{% endautoescape %}", "autoescape"),
    ],
    ids=range(20),
)
def test_what_cannot_be_compiled_is_refused(source: str, words: str) -> None:
    with pytest.raises(TemplateSyntaxError, match=words):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 9000000000 }}",
        "{{ 'a' ~ 1 / 0 }}",
        "{{ 'a' | indent(9000000000) | length }}",
        "{% set x = '%9000000000d' % 1 %}",
        "{% if '%9000000000d' is odd %}{% endif %}",
        "{{ ['%9000000000d'] | map('format', 1) | join | length }}",
        "{{ ('a' * 9000000000)[1:] in 'b' * 9000000000 }}",
        "{% set x = ('%9000000000d' | format(1)).upper() %}",
    ],
)
def test_nothing_is_computed_before_it_is_rendered(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("computed when it was compiled")

    for name in ("count", "charge", "weigh"):
        monkeypatch.setattr(f"nexa_runtime.chat.allowed.{name}", fail)
    ChatTemplate("{% if false %}" + source + "{% endif %}")
    ChatTemplate(source)


def test_all_of_it_takes_little_memory() -> None:
    """In a process that may not take much: what is refused must not have been there before."""
    program = (
        "import resource\n"
        "from tests.chat.test_sandbox import ATTACKS\n"
        "from nexa_runtime.chat.messages import Conversation, Message, Role\n"
        "from nexa_runtime.chat.template import ChatTemplate\n"
        "from nexa_runtime.errors import InvalidRequestError\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (100, 100))\n"
        "for source, _ in ATTACKS:\n"
        "    try:\n"
        "        ChatTemplate(source).render(Conversation((Message(Role.USER, 'Hi'),)))\n"
        "    except InvalidRequestError as error:\n"
        "        assert not isinstance(error.__context__, MemoryError), source[:100]\n"
        # Not ru_maxrss, which begins with what the process had that started this one.
        "status = dict(line.split(':') for line in open('/proc/self/status'))\n"
        "peak = status['VmHWM']\n"
        "assert int(peak.split()[0]) < 700_000, peak\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
