"""An OpenAI-compatible server on loopback that answers rightly, wrongly, slowly, half, with 429 or 500, or never.

Content depends on the request alone (a hash of its messages), so the same question gets the same answer in every run.
`python scripted_teacher.py '{"bad": 0.3}'` serves in a process of its own and prints its URL; GET /log tells what came.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BAD_KINDS = ("empty", "half", "prose", "cut", "wrong", "extra")


@dataclass
class Script:
    """How the server behaves."""

    bad: float = 0.0  # share of questions with a wrong answer
    kinds: tuple[str, ...] = BAD_KINDS
    always: str | None = None  # this text, whatever was asked
    faults: tuple[str, ...] = ()  # for the first requests, in their order: 429, 500, 401, never, half_body, ok, ...
    fault_share: float = 0.0  # of later requests: 429, 500 and half bodies in turn
    latency_s: float = 0.0
    limit: int | None = None  # requests a second, in any second
    no_json_schema: bool = False
    usage: bool = True
    words: int = 12  # of free text
    requests: list[dict[str, Any]] = field(default_factory=list)


class Teacher(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.lock, self.taken = script, threading.Lock(), deque()
        self.count = 0

    def handle_error(self, request, client_address):
        """A killed client is no error of ours."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Teacher

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._send(200, self.server.script.requests)

    def do_POST(self):
        arrived = time.monotonic()
        script = self.server.script
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        key = hashlib.sha256(json.dumps(body["messages"], sort_keys=True).encode()).hexdigest()
        entry = {"at": arrived, "key": key, "auth": self.headers.get("authorization"), "status": 200}
        with self.server.lock:
            number = self.server.count
            self.server.count += 1
            script.requests.append(entry)
            fault = self._fault(number, arrived)
        if fault == "never":
            entry["status"] = 0
            time.sleep(600)
        if fault == "half_body":
            entry["status"] = 0
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
            return
        if fault.isdigit():
            entry["status"] = int(fault)
            self._send(
                int(fault), {"error": {"message": f"scripted {fault}"}}, {"retry-after": "1"} if fault == "429" else {}
            )
            return
        kind = (body.get("response_format") or {}).get("type")
        if kind == "json_schema" and script.no_json_schema:
            entry["status"] = 400
            self._send(
                400, {"error": {"message": "response_format json_schema is not supported", "param": "response_format"}}
            )
            return
        time.sleep(script.latency_s)
        text, finish = answer(body, script, key)
        entry["answered"] = time.monotonic()
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        reply = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
        if script.usage:
            counts = (sum(len(m["content"]) for m in body["messages"]) // 4, len(text) // 4)
            reply["usage"] = {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}
        self._send(200, reply)

    def _fault(self, number: int, now: float) -> str:
        script = self.server.script
        if script.limit is not None:
            taken = self.server.taken
            while taken and taken[0] <= now - 1.0:
                taken.popleft()
            if len(taken) >= script.limit:
                return "429"
            taken.append(now)
        if number < len(script.faults):
            return script.faults[number]
        if script.fault_share and random.Random(number).random() < script.fault_share:
            return ("429", "500", "half_body")[number % 3]
        return "ok"

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value, ensure_ascii=False).encode()
        with contextlib.suppress(OSError):  # the client may have been killed
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            for name, text in (headers or {}).items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)


def schema_of(body: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of the answer: in the request, or behind the last words of the prompt."""
    given = body.get("response_format") or {}
    if given.get("type") == "json_schema":
        return given["json_schema"]["schema"]
    for message in body["messages"]:
        if "JSON Schema, and nothing else:\n" in message["content"]:
            return json.loads(message["content"].rpartition("nothing else:\n")[2])
    return None


def filled(schema: dict[str, Any], draw: random.Random, words: int) -> Any:
    """A value that fits a schema."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return draw.choice(schema["enum"])
    match schema.get("type"):
        case "object":
            return {key: filled(part, draw, words) for key, part in schema.get("properties", {}).items()}
        case "array":
            parts = [filled(part, draw, words) for part in schema.get("prefixItems", [])]
            more = max(schema.get("minItems", 1) - len(parts), 0)
            return parts + [filled(schema["items"], draw, words) for _ in range(more)]
        case "integer":
            return draw.randint(schema.get("minimum", 0), schema.get("maximum", 9))
        case "number":
            return round(draw.uniform(0, 1), 3)
        case "boolean":
            return draw.random() < 0.5
    return " ".join(draw.choice(("road", "flood", "gate", "crew", "north", "bridge", "smoke")) for _ in range(words))


def answer(body: dict[str, Any], script: Script, key: str) -> tuple[str, str]:
    draw = random.Random(key)
    if script.always is not None:
        return script.always, "stop"
    schema = schema_of(body)
    if schema is None:
        return filled({"type": "string"}, draw, script.words), "stop"
    text = json.dumps(filled(schema, draw, script.words), ensure_ascii=False)
    if draw.random() >= script.bad:
        return text, "stop"
    match draw.choice(script.kinds):
        case "empty":
            return "", "stop"
        case "half":
            return text[: len(text) // 2], "stop"
        case "prose":
            return "I am sorry, there is no response.", "stop"
        case "cut":
            return text[: len(text) // 2], "length"
        case "wrong":
            return json.dumps({"nonsense": 1}), "stop"
    return text[:-1] + ', "more": [}', "stop"


@contextlib.contextmanager
def serving(script: Script) -> Iterator[Teacher]:
    """The server in a thread of this process."""
    server = Teacher(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    server = Teacher(Script(**json.loads(sys.argv[1])))
    print(server.url, flush=True)
    server.serve_forever()
