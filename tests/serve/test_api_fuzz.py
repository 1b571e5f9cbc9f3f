"""A1: whatever body comes, no answer above 499 and no broken connection; errors in OpenAI's shape. By schemathesis."""

from __future__ import annotations

import pytest
from echo_engine import EchoEngine
from hypothesis import HealthCheck, Phase, settings

from llmforge.serve.app import create_app

schemathesis = pytest.importorskip("schemathesis")
APP = create_app(EchoEngine({"json_object", "json_schema", "tool_calls"}, "qwen"))
schema = schemathesis.openapi.from_asgi("/openapi.json", APP)
SETTINGS = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "phases": [Phase.explicit, Phase.generate],
    "suppress_health_check": list(HealthCheck),
}


def check(case):
    response = case.call()
    assert response.status_code < 500, (response.status_code, response.text[:500])
    if response.status_code >= 400:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)


@schema.parametrize()
@settings(max_examples=8, **SETTINGS)
def test_any_body_gets_an_answer(case):
    check(case)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=260, **SETTINGS)
def test_two_thousand_bodies_get_an_answer(case):
    check(case)
