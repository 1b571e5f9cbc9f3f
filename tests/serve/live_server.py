"""A server on a loopback port, in a thread of the test, with its engine at hand."""

from __future__ import annotations

import threading
import time

import openai
import uvicorn

from llmforge.config.load import load_recipe
from llmforge.infer.defaults import sampling_of
from llmforge.infer.local.engine import LocalEngine
from llmforge.infer.local.served import ServedModels
from llmforge.serve.app import create_app
from llmforge.serve.connections import CarefulProtocol
from llmforge.serve.drain import DrainingServer

GREEDY = ["do_sample=false", "max_new_tokens=24"]
QUESTION = "打印机卡纸了"


class Server:
    """uvicorn as `forge-cli api` runs it; `settings` are those of create_app."""

    def __init__(self, engine, *, drain_s=0.2, dead_s=20.0, max_connections=256, model="tuned", **settings):
        self.engine, self.model = engine, model
        app = create_app(engine, **settings)
        config = uvicorn.Config(
            app,
            port=0,
            log_level="error",
            ws="none",
            http=CarefulProtocol.for_addresses(max_connections),
            timeout_graceful_shutdown=5,
        )
        self.server = DrainingServer(config, app.state.serving, drain_s, dead_s)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    @classmethod
    def of_run(cls, run_dir, **settings):
        """The run folder's model, greedy unless asked otherwise."""
        recipe = load_recipe([str(run_dir), *GREEDY, "served_model_name=tuned"], "api")
        engine = LocalEngine(ServedModels.from_recipe(recipe))  # in this process, which has torch already
        return cls(engine, defaults=sampling_of(recipe.generate), **settings)

    def ask(self, text=QUESTION, model=None, **settings):
        return self.client.chat.completions.create(
            model=model or self.model, messages=[{"role": "user", "content": text}], **settings
        )

    def becomes_idle(self, within_s=20.0):
        """Whether nothing runs or waits any more."""
        ends_at = time.monotonic() + within_s
        while time.monotonic() < ends_at:
            stats, line = self.engine.stats(), self.server.serving.line
            if not (stats.running or stats.waiting or line.num_running or line.num_waiting):
                return True
            time.sleep(0.01)
        return False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.client.close()
        self.server.should_exit = True
        self.thread.join(timeout=30)
        assert not self.thread.is_alive()
