"""Templates that attack: each ends soon, with an error, and without filling the memory."""

import time
import tracemalloc

import pytest

from edgellm.errors import TemplateError
from edgellm.template import budget
from edgellm.template.template import ChatTemplate

MESSAGES = [{"role": "user", "content": "hello"}]
MAX_SECONDS = 0.2
DOUBLING = "{% set ns = namespace(s=START) %}{% for i in range(60) %}STEP{% endfor %}{{ ns.s }}"


def doubling(start, step):
    return DOUBLING.replace("START", start).replace("STEP", step)


def render(source):
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ messages | attr('__class__') }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{x.__class__}'.format_map({'x': 1}) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self.__init__ }}",
        "{% macro m() %}{% endmacro %}{{ m._func }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ messages[0].pop('role') }}",
        "{{ 'x'.encode() }}",
        "{{ (1).to_bytes(3, 'big') }}",
        "{{ lipsum(9) }}",
    ],
)
def test_nothing_of_python_can_be_reached(source):
    with pytest.raises(TemplateError, match=r"attribute|undefined"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% set l = range(99999) | list %}{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}",
        "{% set l = range(99999) | list %}{% for a in l %}{% for b in l if false %}{% endfor %}{% endfor %}",
        "{% set l = range(99999) | list %}{% for a in l %}{% for b in l %}{% continue %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% set l = range(9999) | list %}{% for i in l %}{{ l == l[1:] }}{{ l | sort | first }}{% endfor %}",
        "{{ range(99999) | map('string') | map('length') | sum }}" * 1000,
        "{% set l = range(99999) | list %}{{ " + " or ".join(["'x' in l"] * 10_000) + " }}",
        "{% for i in range(99999) %}{{ range(99999) | list | length }}{% endfor %}",
    ],
)
def test_templates_that_do_not_end(source, monkeypatch):
    monkeypatch.setattr(budget, "MAX_SECONDS", MAX_SECONDS)
    start = time.thread_time()
    with pytest.raises(TemplateError, match=r"runs for more|recursion|too much"):
        render(source)
    assert time.thread_time() - start < MAX_SECONDS + 2


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**9 }}",
        "{{ 10**9 * 'a' }}",
        "{{ [0] * 10**9 }}",
        "{{ 10**(10**9) }}",
        "{{ range(10**9) | list }}",
        "{{ 'x'.center(10**9) }}",
        "{{ 'x' | center(10**9) }}",
        "{{ 'x'.zfill(10**9) }}",
        "{{ 'x' | indent(10**9) }}",
        "{{ 'x' | round(10**9) }}",
        "{{ [1] | batch(10**9, 'x') | list }}",
        "{{ messages | tojson(indent=10**9) }}",
        "{{ [[1]] | tojson(indent=65000) }}",
        "{{ messages | tojson(separators=('x' * 10000, ':')) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:1000000000d}'.format(1) }}",
        "{{ '{:{w}d}'.format(1, w=10**9) }}",
        "{{ ('{0}' * 1000).format('a' * 100000) }}",
        "{{ ('%s' * 1000) % (('a' * 100000,) * 1000) }}",
        "{{ ('%(x)s' * 1000) % {'x': 'a' * 100000} }}",
        "{{ strftime_now('%1000000000Y') }}",
        "{{ ('a' * 10000).replace('a', 'b' * 10000) }}",
        "{{ ('a' * 10000) | replace('a', 'b' * 10000) }}",
        "{{ ('b' * 10000).join('a' * 10000) }}",
        "{{ ('a' * 10000) | join('b' * 10000) }}",
        "{{ ('\n' * 10000) | indent('x' * 10000) }}",
        "{{ ([[1] * 10] * 100) | sum(start=[]) }}",
        "{{ ('a' * 400000).rfind('b' + 'a' * 100000) }}",
        "{{ ('a' * 400000).strip('b' * 100000) }}",
        "{{ ('a' * 400000) | trim('b' * 100000) }}",
        "{{ range(99999) | unique | list }}",
        "{% set x = 'a' * 500000 %}{{ x ~ x ~ x }}",
        "{% set x = 'a' * 500000 %}{{ x }}{{ x }}",
        "{% set x = 'a' * 500000 %}{% set y = x[1:] %}{% set z = x[2:] %}",
        "{% for i in range(99999) %}" + "a" * 1000 + "{% endfor %}",
        "{% macro f(s) %}{{ f(s[1:]) }}{% endmacro %}{{ f('a' * 500000) }}",
        doubling("'a'", "{% set ns.s = ns.s ~ ns.s %}"),
        doubling("'a'", "{% set ns.s = ns.s + ns.s %}"),
        doubling("'a'", "{% set ns.s = ns.s.replace('a', 'aa') %}"),
        doubling("'a'", "{% set q %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = q %}"),
        doubling("[1]", "{% set ns.s = ns.s + ns.s %}"),
        doubling("[]", "{% set ns.s = [ns.s, ns.s] %}"),
        doubling("[]", "{% set ns.s = (ns.s, ns.s) %}"),
        doubling("[]", "{% set ns.s = {1: ns.s, 2: ns.s} %}"),
        doubling("[]", "{% set ns.s = dict(a=ns.s, b=ns.s) %}"),
        doubling("9", "{% set ns.s = ns.s * ns.s %}"),
    ],
)
def test_templates_that_fill_the_memory(source, monkeypatch):
    monkeypatch.setattr(budget, "MAX_WORK", 1 << 20)
    monkeypatch.setattr(budget, "MAX_SECONDS", 100.0)  # the clock is not what stops these
    tracemalloc.start()
    try:
        start = time.thread_time()
        with pytest.raises(TemplateError, match=r"builds|asks|computes|formats|indents|searches|called with|adds|big"):
            render(source)
        assert time.thread_time() - start < 4
        assert tracemalloc.get_traced_memory()[1] < 16_000_000
    finally:
        tracemalloc.stop()


def test_opaque_values_have_a_short_text():
    source = doubling("1", "{% set n = namespace(a=ns.s, b=ns.s) %}{% set ns.s = n %}")
    assert render(source) == "<namespace>"


def test_long_conversations_have_the_budget_they_need():
    messages = [{"role": "user", "content": f"{i} " * 2000} for i in range(2000)]
    source = (
        "{% set rest = messages[1:] %}{% for m in rest %}{{ '<' + m.role + '>' + m.content | trim + '\n' }}{% endfor %}"
    )
    text = ChatTemplate(source, bos_token="", eos_token="").render(messages)
    assert text == "".join(f"<user>{m['content'].strip()}\n" for m in messages[1:])
