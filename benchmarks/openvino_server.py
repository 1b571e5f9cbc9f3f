"""OpenVINO GenAI's continuous batching behind as little HTTP as it takes to stream chat completions.

    python benchmarks/openvino_server.py MODEL_DIR PORT [PRECISION]

PRECISION is f32 unless given. Left to itself ("default") OpenVINO computes in bf16 where the CPU has it, and keeps keys
and values in 8 bit, whatever precision the model was exported in. It needs an environment of its own with
openvino-genai, fastapi and uvicorn, and a model that `optimum-cli export openvino --weight-format fp32` wrote. It only
serves comparisons (docs/serving_performance.md).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import threading

import openvino_genai as genai
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

MODEL_DIR, PORT = sys.argv[1], int(sys.argv[2])
PRECISION = sys.argv[3] if len(sys.argv) > 3 else "f32"
CACHE_GB = 2

scheduler = genai.SchedulerConfig()
scheduler.cache_size = CACHE_GB
scheduler.enable_prefix_caching = True
hints = {} if PRECISION == "default" else {"INFERENCE_PRECISION_HINT": PRECISION, "KV_CACHE_PRECISION": PRECISION}
pipeline = genai.ContinuousBatchingPipeline(MODEL_DIR, scheduler, "CPU", hints)
tokenizer = pipeline.get_tokenizer()
app = FastAPI()
numbers = itertools.count()
changed = threading.Condition()
waiting: list[tuple] = []


def work() -> None:
    """Step while there is something to do; hand each request's new ids over."""
    running: list[tuple] = []
    while True:
        with changed:
            changed.wait_for(lambda: waiting or running)
            new, waiting[:] = waiting[:], []
        for ids, config, loop, queue in new:
            running.append((pipeline.add_request(next(numbers), ids, config), loop, queue))
        pipeline.step()
        for entry in running[:]:
            handle, loop, queue = entry
            done = handle.get_status() != genai.GenerationStatus.RUNNING
            ids = [i for output in handle.read().values() for i in output.generated_ids] if handle.can_read() else []
            loop.call_soon_threadsafe(queue.put_nowait, (ids, done))
            if done:
                running.remove(entry)


@app.get("/v1/models")
def models() -> dict:
    return {"object": "list", "data": [{"id": "openvino", "object": "model"}]}


@app.post("/v1/chat/completions")
async def chat(request: Request) -> StreamingResponse:
    asked = await request.json()
    text = tokenizer.apply_chat_template(asked["messages"], add_generation_prompt=True)
    ids = tokenizer.encode(text, add_special_tokens=False).input_ids
    config = genai.GenerationConfig(max_new_tokens=asked["max_tokens"], ignore_eos=bool(asked.get("ignore_eos")))
    queue: asyncio.Queue = asyncio.Queue()
    with changed:
        waiting.append((ids, config, asyncio.get_running_loop(), queue))
        changed.notify()
    return StreamingResponse(stream(queue, ids.shape[1]), media_type="text/event-stream")


async def stream(queue: asyncio.Queue, num_prompt: int):
    num_tokens, done = 0, False
    while not done:
        ids, done = await queue.get()
        num_tokens += len(ids)
        if ids:
            delta = {"content": tokenizer.decode(ids)}
            yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': None}]})}\n\n"
    yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {}, 'finish_reason': 'length'}]})}\n\n"
    usage = {"prompt_tokens": num_prompt, "completion_tokens": num_tokens}
    yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"


threading.Thread(target=work, daemon=True).start()
uvicorn.run(app, port=PORT, log_level="error")
