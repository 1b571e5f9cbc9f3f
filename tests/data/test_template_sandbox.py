"""A chat template out of a model folder cannot reach Python, run for ever, or fill the memory."""

from __future__ import annotations

import time

import pytest

from llmforge.data.templates import sandbox
from llmforge.data.templates.sandbox import render
from llmforge.errors import RecipeError

START = "{% set ns = namespace(x='xx') %}{% for i in range(60) %}"  # what follows doubles x sixty times


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    monkeypatch.setattr(sandbox, "TIME_LIMIT_S", 0.3)
    monkeypatch.setattr(sandbox, "SIZE_LIMIT", 100_000)
    sandbox._compile.cache_clear()


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self._TemplateReference__context.x }}",
        "{{ lipsum.__globals__.os }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ '%s' | format(messages) }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_no_way_out(source):
    with pytest.raises(RecipeError, match="chat template"):
        assert render(source, messages=[{"role": "user"}]) == "never"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}x{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% for a in range(99999) if range(99999) | sum > 0 %}{% endfor %}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_no_loop_without_end(source):
    start = time.monotonic()
    with pytest.raises(RecipeError, match="chat template"):
        render(source, messages=[])
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 1000000000 }}",
        START + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
        START + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        START + "{% set ns.x = ns.x.replace('x', 'xx') %}{% endfor %}",
        "{% set ns = namespace(x=['x']) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        START + "{% set ns.x = ns.x | replace('x', 'xx') %}{% endfor %}",
        START + "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{% for i in range(99999) %}xxxxxxxxxxxxxxxx{% endfor %}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ 'x' | center(1000000000) }}",
        "{{ [1] | tojson(indent=1000000000) }}",
        START + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
        "{% set ns = namespace(x=[]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = {1: ns.x, 2: ns.x} %}{% endfor %}",
        "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{{ ('x' * 90000).replace('x', 'y' * 90000) }}",
        "{{ ('x' * 90000) | replace('x', 'y' * 90000) }}",
        "{{ range(90000) | join('y' * 90000) }}",
        "{{ ('y' * 90000).join('x' * 90000) }}",
    ],
)
def test_no_output_without_end(source):
    start = time.monotonic()
    with pytest.raises(RecipeError, match="chat template"):
        render(source, messages=[])
    assert time.monotonic() - start < 5


def test_what_a_template_refuses_is_an_error_with_its_words():
    with pytest.raises(RecipeError, match="the model's chat template stops: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RecipeError, match="the model's chat template fails"):
        render("{{ messages[0].content + 1 }}", messages=[{"content": "x"}])


def test_what_chat_templates_use_works():
    source = (
        "{%- for m in messages if m.role != 'system' -%}{%- if loop.last -%}!{%- endif -%}{{ m | tojson }}"
        "{%- endfor -%}{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}"
        "{% if i == 3 %}{% break %}{% endif %}{% endfor %}{{ ['a', 'b'] | map('upper') | join(',') }}"
        "{{ 2 * 3 + 1 }}{{ 'a' ~ 1 }}{{ {'b': 1}.items() | list }}{{ '-' * 3 }}"
    )
    text = render(source, messages=[{"role": "system", "content": "x"}, {"role": "user", "content": "é<"}])
    assert text == '!{"role": "user", "content": "é<"}13A,B7a1[(\'b\', 1)]---'
    assert len(render("{{ strftime_now('%Y') }}")) == 4
