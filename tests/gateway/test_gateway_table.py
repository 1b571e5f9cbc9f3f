"""What a table may say, and how a worker's cards are chosen."""

import pytest

from llmforge import cli
from llmforge.gateway.placement import place
from llmforge.gateway.table import WorkerEntry, load_table

GIB = 2**30


def test_a_table_is_read_with_overrides(tmp_path):
    path = tmp_path / "gateway.yaml"
    path.write_text(
        "kind: gateway\nport: 7000\nworkers:\n"
        "  - {name: a, url: 'http://h:1/v1/', slots: 2, key_env: K}\n"
        "  - {name: b, run: 'runs/x infer_backend=vllm', num_gpus: 2}\n"
        "  - {name: c, command: 'sglang --port {port}'}\n"
        "models: {x: y, z: {title: Zed}}\n"
    )
    table = load_table([str(path), "port=0"])
    assert table.port == 0
    assert table.entries[0] == WorkerEntry("a", "http://h:1/v1", "K", 2)
    assert table.entries[1].run == ("runs/x", "infer_backend=vllm")
    assert (table.names["x"].serves, table.names["z"].serves, table.names["z"].title) == ("y", "z", "Zed")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workers: [{name: a, url: 'http://h/v1'}]", "kind: missing"),
        ("kind: gatway", "line 1: kind: got 'gatway', expected one of gateway. Did you mean 'gateway'?"),
        ("kind: gateway\nworker: []", "line 2: worker: no such key. Did you mean 'workers'?"),
        ("kind: gateway\nport: x", "line 2: port: got 'x', expected a whole number"),
        ("kind: gateway\nworkers: [{name: a}]", "workers[0]: a: expected one of url, run, command; got none"),
        ("kind: gateway\nworkers: [{name: a, url: h}]", "workers[0]: url: got 'h', expected http://HOST:PORT/v1"),
        ("kind: gateway\nworkers: [{name: a, url: 'http://u:p@h'}]", "holds a name or password"),
        ("kind: gateway\nworkers: [{name: a, url: 'http://h', slot: 2}]", "slot: no such key. Did you mean 'slots'?"),
        ("kind: gateway\nworkers: [{name: a, command: x}]", "a: command has no {port}"),
        ("kind: gateway\nworkers: [{name: a, url: 'http://h', cards: '0'}]", "cards: no such key"),
        ("kind: gateway\nworkers: [{name: a, url: 'http://h'}, {name: a, url: 'http://i'}]", "'a' is there twice"),
        ("kind: gateway\nmodels: {x: {titel: y}}", "models.x.titel: no such key. Did you mean 'title'?"),
    ],
)
def test_a_wrong_table_ends_with_2_and_a_line(tmp_path, capsys, text, said):
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    assert cli.main(["gateway", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_a_gateway_open_to_others_needs_a_key(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FORGE_API_KEY", raising=False)
    path = tmp_path / "gateway.yaml"
    path.write_text("kind: gateway\nhost: 0.0.0.0\n")
    assert cli.main(["gateway", str(path)]) == 2
    assert "set FORGE_API_KEY or api_keys_file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weights", "free", "num_gpus", "can_split", "cards"),
    [
        (10, [80, 80, 80, 80], 2, False, [[0], [1]]),
        (10, [80, 12.5], 2, False, [[0], [1]]),  # 10 x 1.25 fits exactly
        (100, [80, 80], 2, True, [[0, 1]]),
    ],
)
def test_one_replica_per_card_when_the_model_fits_on_one(weights, free, num_gpus, can_split, cards):
    assert place(weights * GIB, [int(x * GIB) for x in free], num_gpus, can_split) == cards


@pytest.mark.parametrize(
    ("weights", "free", "num_gpus", "can_split", "said"),
    [
        (10, [80], 2, True, "num_gpus is 2, this machine has 1"),
        (100, [80, 80], 2, False, "does not fit on one card (125.0 GiB are needed); infer_backend: vllm"),
        (200, [80, 80], 2, True, "does not fit on 2 cards together (250.0 GiB are needed)"),
    ],
)
def test_what_does_not_fit_is_said_with_numbers(weights, free, num_gpus, can_split, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")):
        place(weights * GIB, [int(x * GIB) for x in free], num_gpus, can_split)
