"""litellm against the server. It caps packages of ours, so it runs in an environment of its own:

python -m venv litellm && litellm/bin/pip install "litellm[mcp]"    # it imports mcp as soon as a request has tools
FORGE_LITELLM_PYTHON=$PWD/litellm/bin/python pytest -m peers tests/serve/test_api_litellm.py
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from live_server import QUESTION

pytestmark = pytest.mark.peers
SCRIPT = """
import json, sys
import litellm

asked = dict(model="openai/tuned", api_base=sys.argv[1], api_key="none", max_retries=0, temperature=0,
             messages=[{"role": "user", "content": sys.argv[2]}])
found = {}
plain = litellm.completion(**asked, max_tokens=8)
found["plain"] = plain.choices[0].message.content
found["tokens"] = plain.usage.completion_tokens
chunks = list(litellm.completion(**asked, max_tokens=8, stream=True, stream_options={"include_usage": True}))
found["streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 4}}, "required": ["city"],
          "additionalProperties": False}
form = {"type": "json_schema", "json_schema": {"name": "w", "schema": schema}}
found["json"] = litellm.completion(**asked, max_tokens=60, response_format=form).choices[0].message.content
tools = [{"type": "function", "function": {"name": "get_weather", "parameters": schema}}]
called = litellm.completion(**asked, max_tokens=80, tools=tools, tool_choice="required", parallel_tool_calls=False)
found["call"] = called.choices[0].message.tool_calls[0].function.name
try:
    litellm.completion(**{**asked, "model": "openai/nobody"})
except litellm.NotFoundError as error:
    found["refused"] = error.status_code
print(json.dumps(found))
"""


def test_litellm_asks_streams_and_calls(server):
    python = os.environ.get("FORGE_LITELLM_PYTHON")
    if not python:
        pytest.skip("FORGE_LITELLM_PYTHON names no environment with litellm")
    script = [python, "-c", SCRIPT, f"{server.url}/v1", QUESTION]
    env = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it asks the net for prices first
    done = subprocess.run(script, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    expected = server.ask(max_tokens=8).choices[0].message.content
    assert found["plain"] == found["streamed"] == expected
    assert found["tokens"] == 8
    assert set(json.loads(found["json"])) == {"city"}
    assert (found["call"], found["refused"]) == ("get_weather", 404)
