"""A server with known answers, started as a command: PORT, then words that say what it cannot do."""

from __future__ import annotations

import asyncio
import json
import sys

import uvicorn

PIECE_S = 0.01
words = set(sys.argv[2:])
num_asked = 0


async def app(scope, receive, send):
    global num_asked
    if scope["type"] != "http":
        return
    body = b""
    while scope["method"] == "POST":
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if scope["path"] == "/v1/models":
        await answer(send, 200, {"data": [{"id": "a"}, {"id": "b"}]})
        return
    asked = json.loads(body)
    num_asked += 1
    if "strict" in words and "ignore_eos" in asked:
        await answer(send, 400, {"error": {"message": "unknown parameter 'ignore_eos'"}})
    elif "busy" in words and num_asked % 3 == 0:
        await answer(send, 429, {"error": {"message": "busy"}})
    elif asked.get("stream"):
        await stream(send, asked)
    else:
        await answer(send, 200, {"choices": [{}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})


async def answer(send, status, body):
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


async def stream(send, asked):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})

    async def event(data):
        await send(
            {"type": "http.response.body", "body": f"data: {json.dumps(data)}\r\n\r\n".encode(), "more_body": True}
        )

    num_tokens = asked["max_tokens"]
    await event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
    for _ in range(num_tokens):
        await asyncio.sleep(PIECE_S)
        await event({"choices": [{"delta": {"content": "word "}, "finish_reason": None}]})
    if "cut" not in words:
        await event({"choices": [{"delta": {}, "finish_reason": "length"}]})
        if "silent" not in words:
            await event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": num_tokens}})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
