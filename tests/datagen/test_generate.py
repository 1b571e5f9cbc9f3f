"""Generation against a scripted server: accepted rows are valid, all are accounted for, at any number of workers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from scripted_teacher import Script, serving

from llmforge.datagen.answer import check_schema
from llmforge.datagen.generate import estimate, generate
from llmforge.datagen.recipe import load_dataset_recipe
from llmforge.errors import GateError, RecipeError, RunError

pytest.importorskip("openai")

SYMBOLS = ["Cordon line", "Command post", "Fire station", "Shelter", "Flood area", "Search area",
           "Evacuation route", "First aid", "Water point", "Road block", "Landing site", "Staging area"]  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {
        "report": {"type": "string", "minLength": 5},
        "symbol": {
            "type": "object",
            "properties": {"name_en": {"type": "string"}, "code": {"type": "string"}},
            "required": ["name_en", "code"],
            "additionalProperties": False,
        },
        "points": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
    },
    "required": ["report", "symbol", "points"],
    "additionalProperties": False,
}
RECIPE = """\
kind: dataset
name: lines
seed: 7
slots:
  id: {uuid: 4}
  symbol: {table: symbols.csv, pick: quota, per_value: PER_VALUE, columns: [name_en, code]}
  place: {table: places.csv, n: 2}
  axis: {choice: [ns, ew]}
variants: {by: axis}
compute:
  base_points: offset(place[0], axis=axis, side=perpendicular, delta=0.005)
prompt: line.j2
output_schema: line.json
facts: {symbol.name_en: symbol.name_en, symbol.code: symbol.code, points: compute.base_points}
checks: ["out.symbol.name_en == slots.symbol.name_en", "close(out.points[0], compute.base_points[0], 1e-6)"]
row: {instruction: Draw the line., input: "{{ out.report }}", output: out.symbol}
teacher: {base_url: URL, model: gpt-4-turbo-preview, max_tokens: 200, patience_s: 20, timeout_s: 5}
max_rejected: 1.0
"""


@pytest.fixture
def job(tmp_path):
    """A folder with a recipe, its tables, prompt and schema; `job(url, *words)` loads it."""
    (tmp_path / "symbols.csv").write_text(
        "name_en,code\n" + "".join(f"{name},S{i:02}\n" for i, name in enumerate(SYMBOLS)), encoding="utf-8"
    )
    (tmp_path / "places.csv").write_text("name,lon,lat\nMill,10.5,50.25\nPort,10.6,50.3\nHill,10.7,50.35\n")
    (tmp_path / "line.j2").write_text("Report a {{ symbol.name_en }} at {{ place[0].name }} for row {{ id }}.")
    (tmp_path / "line.json").write_text(json.dumps(SCHEMA))

    def load(url: str, *words: str, per_value: int = 2, text: str = RECIPE):
        path = tmp_path / "line.yaml"
        text = text.replace("URL", url).replace("PER_VALUE", str(per_value))
        path.write_text(text, encoding="utf-8")
        return load_dataset_recipe([str(path), f"store.dir={tmp_path / 'work'}", *words])

    return load


def files(folder: Path, kind: str = "ok") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / kind).glob("*.json"))}


def test_rows_carry_the_sampled_facts_and_quotas_are_exact(job):
    with serving(Script()) as teacher:
        result = generate(job(teacher.url, "teacher.parallel=8", per_value=4))
    rows = [json.loads(data) for data in files(result.folder).values()]
    assert len(rows) == 48
    assert Counter(row["slots"]["symbol"]["name_en"] for row in rows) == dict.fromkeys(SYMBOLS, 4)
    assert Counter((row["variant"], row["slots"]["symbol"]["code"]) for row in rows).most_common()[-1][1] == 2
    for row in rows:
        lon, lat = row["slots"]["place"][0]["lon"], row["slots"]["place"][0]["lat"]
        moved = (
            [[lon - 0.005, lat], [lon + 0.005, lat]]
            if row["variant"] == "ns"
            else [[lon, lat - 0.005], [lon, lat + 0.005]]
        )
        assert row["out"]["points"] == [pytest.approx(point) for point in moved]
        assert row["output"] == row["out"]["symbol"] == row["slots"]["symbol"]
        assert row["input"] == row["out"]["report"]


def test_one_four_and_sixteen_workers_give_the_same_files(job, tmp_path):
    seen = []
    for workers in (1, 4, 16):
        with serving(Script(bad=0.3, fault_share=0.05)) as teacher:
            words = (
                f"teacher.parallel={workers}",
                f"store.dir={tmp_path / str(workers)}",
                "dedupe.field=instruction+input",
            )
            result = generate(job(teacher.url, *words))
        seen.append((files(result.folder), files(result.folder, "rejected")))
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0][0]) > 15


def test_with_thirty_percent_bad_answers_accepted_rows_are_valid_and_rejected_ones_have_a_cause(job):
    with serving(Script(bad=0.3)) as teacher:
        result = generate(job(teacher.url, "teacher.parallel=8", "teacher.retries=1", per_value=10))
    accepted = [json.loads(data) for data in files(result.folder).values()]
    rejected = [json.loads(data) for data in files(result.folder, "rejected").values()]
    assert len(accepted) + len(rejected) == 120
    assert 20 <= len(rejected) <= 55
    for row in accepted:
        check_schema(row["out"], SCHEMA)
        assert row["out"]["symbol"] == row["slots"]["symbol"]
    assert {row["cause"] for row in rejected} <= {"empty", "cut", "json", "schema:.", "schema:more"}
    assert all(row["detail"] for row in rejected)
    assert result.counts["causes"] == dict(Counter(row["cause"] for row in rejected).most_common())
    assert "No response" not in json.dumps(accepted)


def test_spares_fill_the_quotas_that_rejected_rows_left_short(job, tmp_path):
    seen = []
    for workers in (1, 8):
        words = ("teacher.retries=1", "dedupe.field=input", f"store.dir={tmp_path / str(workers)}")
        with serving(Script(bad=0.3)) as teacher:
            first = generate(job(teacher.url, *words, f"teacher.parallel={workers}", per_value=4))
            lacking = sum(first.counts["short"]["symbol"].values())
            assert lacking == first.counts["rejected"] == 48 - first.counts["accepted"] > 5
            filled = generate(job(teacher.url, *words, f"teacher.parallel={workers}", "refill=9", per_value=4))
        assert "short" not in filled.counts
        assert filled.counts["accepted"] == 48
        assert filled.counts["rows"] == 48 + filled.counts["rejected"]
        rows = [json.loads(data) for data in files(filled.folder).values()]
        assert Counter(row["slots"]["symbol"]["name_en"] for row in rows) == dict.fromkeys(SYMBOLS, 4)
        assert Counter(row["variant"] for row in rows) == {"ns": 24, "ew": 24}
        assert len({row["id"] for row in rows}) == 48
        seen.append(files(filled.folder))
    assert seen[0] == seen[1]


def test_a_wrong_answer_goes_back_with_the_words_of_the_check(job):
    with serving(Script(bad=0.5)) as teacher:
        result = generate(job(teacher.url, "teacher.retries=3"))
    attempts = [json.loads(data)["attempts"] for data in files(result.folder, "raw").values()]
    assert {len(tries) for tries in attempts} == {1, 2, 3}
    assert all(tries[-1]["cause"] is None or len(tries) == 3 for tries in attempts)
    counts = result.counts
    assert counts["answers"] == sum(map(len, attempts)) == len(teacher.script.requests)
    assert counts["answers"] >= counts["parsed"] >= counts["schema_ok"] >= counts["checks_ok"] == counts["accepted"]


def test_a_teacher_that_always_names_one_symbol_loses_the_other_eleven(job):
    same = {"report": "the same old story", "symbol": {"name_en": "Shelter", "code": "S03"}, "points": [[1, 1]]}
    text = RECIPE.replace("facts: {", "facts: {} #").replace(
        ', "close(out.points[0], compute.base_points[0], 1e-6)"', ""
    )
    with (
        serving(Script(always=json.dumps(same))) as teacher,
        pytest.raises(GateError, match=r"550 of 600 rows were rejected \(check:symbol 550\)") as error,
    ):
        generate(
            job(teacher.url, "max_rejected=0.5", "teacher.parallel=16", "teacher.retries=1", per_value=50, text=text)
        )
    assert error.value.exit_code == 3


def test_a_decided_row_is_never_asked_again(job):
    with serving(Script(bad=0.2)) as teacher:
        recipe = job(teacher.url)
        first = generate(recipe)
        asked = len(teacher.script.requests)
        again = generate(recipe)
        assert len(teacher.script.requests) == asked
    assert again.counts == first.counts


def test_rows_no_server_answered_are_asked_by_the_next_run(job):
    with serving(Script(faults=("401",) * 1)) as teacher, pytest.raises(RecipeError, match="refuses the key"):
        generate(job(teacher.url))
    with serving(Script(faults=("500",) * 100)) as teacher, pytest.raises(RunError, match="run the same command again"):
        generate(job(teacher.url, "teacher.patience_s=0"))
    with serving(Script()) as teacher:
        assert generate(job(teacher.url)).counts["accepted"] == 24


def test_429_500_half_bodies_and_silence_cost_no_row(job):
    script = Script(faults=("ok", "500", "half_body", "never", "ok", "429", "ok", "half_body"))
    with serving(script) as teacher:
        result = generate(job(teacher.url, "teacher.timeout_s=1", per_value=1))
    assert result.counts["accepted"] == 12
    assert result.counts["usage_estimated"] == 1  # the silent one may have been paid


def test_the_second_server_is_asked_when_the_first_is_dead(job, capsys):
    with serving(Script()) as teacher:
        words = [f"teacher.fallback=[{{base_url: {teacher.url}, model: smol}}]"]
        result = generate(job("http://127.0.0.1:9/v1", *words))
    assert result.counts["accepted"] == 24
    assert "is asked instead" in capsys.readouterr().err


def test_a_server_without_json_schema_is_asked_for_an_object_with_the_schema_in_the_prompt(job):
    with serving(Script(no_json_schema=True)) as teacher:
        result = generate(job(teacher.url, "teacher.parallel=1"))
        assert [entry["status"] for entry in teacher.script.requests].count(400) == 1
    assert result.counts["accepted"] == 24


def test_the_budget_stops_before_the_request_that_could_break_it(job):
    words = ("teacher.budget_usd=0.03", "teacher.parallel=4")
    with (
        serving(Script()) as teacher,
        pytest.raises(GateError, match=r"budget_usd 0.03: 0.0\d+ USD are spent") as error,
    ):
        generate(job(teacher.url, *words, per_value=50))
    assert error.value.exit_code == 3
    manifest = json.loads((job("http://x/v1").folder / "manifest.json").read_text())["generate"]
    assert 0.015 < manifest["counts"]["cost_usd"] <= 0.03
    assert manifest["counts"]["accepted"] == len(teacher.script.requests)


def test_the_estimate_after_a_preview_is_within_ten_percent(job):
    with serving(Script()) as teacher:
        recipe = job(teacher.url, per_value=10)
        assert estimate(recipe)["measured_rows"] == 0
        generate(recipe, preview=8)
        guessed = estimate(recipe)
        spent = generate(recipe).counts["cost_usd"]
    assert guessed["measured_rows"] == 8
    assert guessed["usd"]["gpt-4-turbo-preview"] == pytest.approx(spent, rel=0.1)


def test_missing_usage_is_estimated_and_said(job):
    with serving(Script(usage=False)) as teacher:
        counts = generate(job(teacher.url)).counts
    assert counts["usage_estimated"] == 24
    assert counts["tokens_out"] > 0


def test_copies_are_rejected_by_name_of_the_row_they_copy(job):
    text = RECIPE.replace("Draw the line.", "Draw.").replace("{{ out.report }}", "{{ symbol.code }}")
    with serving(Script()) as teacher:
        result = generate(job(teacher.url, "dedupe.field=input", "teacher.parallel=8", per_value=3, text=text))
    assert result.counts["accepted"] == 12
    assert result.counts["causes"] == {"duplicate": 24}
    rows = [json.loads(data) for data in files(result.folder).values()]
    assert sorted(row["index"] for row in rows) == list(range(12))  # the first of each, whoever answered first


def test_another_recipe_is_not_mixed_into_a_begun_folder(job, tmp_path):
    with serving(Script()) as teacher:
        generate(job(teacher.url))
        with pytest.raises(RecipeError, match="begun with another recipe; different: seed"):
            generate(job(teacher.url, "seed=8"))
        (tmp_path / "symbols.csv").write_text("name_en,code\nOther,X\n")
        with pytest.raises(RecipeError, match=r"table .*symbols.csv"):
            generate(job(teacher.url))


def test_the_key_is_sent_and_written_nowhere(job, tmp_path, monkeypatch, capsys):
    (tmp_path / ".env").write_text('export TEACHER_KEY="sk-secret-123"\n')
    with serving(Script(bad=0.3)) as teacher:
        result = generate(job(teacher.url, "teacher.key_env=TEACHER_KEY"))
        assert {entry["auth"] for entry in teacher.script.requests} == {"Bearer sk-secret-123"}
    captured = capsys.readouterr()
    written = b"".join(path.read_bytes() for path in result.folder.rglob("*") if path.is_file())
    assert "sk-secret" not in captured.out + captured.err
    assert b"sk-secret" not in written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("columns: [name_en, code]", "columns: [name_en, colour]"), "no column 'colour'.*Present: name_en, code"),
        (("facts: {symbol.name_en", "facts: {symbol.nam_en"), "no place symbol.nam_en"),
        (("points: compute.base_points}", "points: symbol.code}"), "points must be 'S.*does not allow it"),
        (("checks: [", 'checks: ["out.report == 3", '), "checks.report: row 0 wants report == 3.*does not allow"),
        (("axis=axis", "axis=axes"), "'axes' is no slot. Did you mean 'axis'"),
        (("offset(", "ofset("), "'ofset' is no function. Did you mean 'offset'"),
        (("line.j2", "lime.j2"), "no file 'lime.j2'.*Did you mean 'line.j2'"),
        (("max_tokens", "max_token"), "teacher.max_token: no such key. Did you mean 'teacher.max_tokens'"),
        (("{choice: [ns, ew]}", "{choise: [ns, ew]}"), "slots.axis: got"),
        (("seed: 7", "seed: 7\nrows: 25"), "rows 25, slots.symbol 24: these must be one number"),
        (("checks: [", "checks: [\"__import__('os')\", "), "'__import__' is no function"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_before_anything_is_asked(job, change, message):
    with serving(Script()) as teacher:
        with pytest.raises(RecipeError, match=message):
            generate(job(teacher.url, text=RECIPE.replace(*change)))
        assert teacher.script.requests == []
