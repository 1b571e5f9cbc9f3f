"""A worker with known answers: PORT NAME, then words for what it does wrong. It says its name, a piece at a time."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import uvicorn

NAME, words = sys.argv[2], set(sys.argv[3:])
stalled = asyncio.Event()


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    path = scope["path"]
    if path == "/v1/models":
        return await answer(send, 200, {"data": [{"id": "shared", "object": "model"}, {"id": f"only-{NAME}"}]})
    if path == "/readyz":
        return await answer(send, 503 if "draining" in words else 200, {})
    if path == "/die":
        os._exit(1)
    body = json.loads((await receive())["body"])
    said = body["messages"][-1]["content"]
    headers = {key.decode(): value.decode() for key, value in scope["headers"]}
    if "busy" in words:
        return await answer(send, 429, {"error": {"message": f"{NAME} is busy"}}, [(b"retry-after", b"7")])
    if said == "wrong":
        return await answer(send, 400, {"error": {"message": "no such field"}})
    if said == "bug":
        return await answer(send, 500, {"error": {"message": "bug"}})
    if said == "die" and "mortal" in words:
        os._exit(1)
    if not body.get("stream"):
        if said == "slow":
            await asyncio.sleep(0.5)
        text = json.dumps({"name": NAME, "model": body["model"], "key": headers.get("authorization")})
        return await answer(send, 200, {"choices": [{"message": {"content": text}}]})
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for number in range(3):
        chunk = json.dumps({"choices": [{"delta": {"content": f"{NAME}{number} "}, "finish_reason": None}]})
        await send({"type": "http.response.body", "body": f"data: {chunk}\n\n".encode(), "more_body": True})
        if said == "die in the middle" and "mortal" in words:
            await asyncio.sleep(0.1)
            os._exit(1)
        if said == "wait for leave":
            while (await receive())["type"] != "http.disconnect":
                pass
            stalled.set()
            print("client left", flush=True)
            return None
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def answer(send, status, body, headers=()):
    kind = (b"content-type", b"application/json")
    await send({"type": "http.response.start", "status": status, "headers": [kind, *headers]})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
