"""Fine-tune, Runs and Home in a real browser: a first run, what outlives pages and boards, bad values, many points."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import browsing as web
import pytest

from llmforge.process import process_start
from llmforge.runs import RunDir
from llmforge.webui import launch
from llmforge.webui.board import Board
from llmforge.webui.servers import servers, stop_server

pytestmark = pytest.mark.web
PATIENCE_MS = 180_000 * web.SLOW
LONG = {"max_steps": 200_000, "save_steps": 50, "save_total_limit": 2}  # ends by being ended


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_model_dir) -> Path:
    """A project with a tiny model and a tiny data set."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(tiny_model_dir, root / "models/tiny")
    (root / "data").mkdir()
    rows = [{"instruction": f"Which floor is room {n}?", "input": "", "output": f"Floor {n % 7}."} for n in range(40)]
    (root / "data/floors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "data/dataset_info.json").write_text(json.dumps({"floors": {"file_name": "floors.jsonl"}}))
    return root


@pytest.fixture(scope="module", autouse=True)
def line(tmp_path_factory) -> Iterator[None]:
    """A line of its own before the processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORGE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def board(project, line) -> Iterator[web.Board]:
    running = web.start_board(project)
    yield running
    running.stop()
    for state in (project / "runs").glob("*/run.json"):
        run = RunDir(state.parent)
        if run.read_state().live:
            launch.kill_run(run)
            ended(run)


def ended(run: RunDir, *states: str) -> str:
    """Wait until a run is in one of some states; any end, when none is named."""
    until = time.monotonic() + PATIENCE_MS / 1000
    while True:
        now = run.read_state() if run.state_path.is_file() else None
        if now and (now.state in states or (not states and not now.live)):
            return now.state
        assert time.monotonic() < until, f"{run.path.name} stays {now}"
        time.sleep(0.1)


def steps_of(run: RunDir) -> int:
    return run.read_state().step


def start_long(project: Path, name: str) -> RunDir:
    """A run of the tiny model that goes on until it is ended, started as the page does."""
    keys = {"model_name_or_path": "models/tiny", "dataset": "floors", "template": "chatml", "report_to": "none", **LONG}
    recipe = "".join(f"{key}: {value}\n" for key, value in keys.items())
    return launch.start_run(Board(project), name, recipe, ["cpu"])


def trains(run: RunDir, beyond: int = 0) -> None:
    """Wait until it has made steps."""
    ended(run, "running", "stopping")
    until = time.monotonic() + PATIENCE_MS / 1000
    while steps_of(run) <= beyond:
        assert time.monotonic() < until
        time.sleep(0.1)


def shows(page, state: str) -> None:
    """Wait until the open run has a state on the page."""
    page.wait_for_selector(f".run-head .badge.{state}", timeout=PATIENCE_MS)


def choose(page, field: str, text: str) -> None:
    """By mouse, from a list."""
    page.click(f"#field-{field} input")
    page.click(f"[role=option]:has-text('{text}')")


def typed(page, where: str, text: str, field: str = ":is(input, textarea)") -> None:
    """Type into a field in place of what is there; playwright's fill is no typing to gradio."""
    page.click(f"{where} {field}")
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    page.keyboard.type(text)


class Touched:
    """The page, by mouse; counts the fields that somebody had to touch."""

    def __init__(self, page):
        self.page, self.fields = page, []

    def choose(self, field: str, text: str) -> None:
        self.fields.append(field)
        choose(self.page, field, text)

    def click(self, field: str, where: str) -> None:
        self.fields.append(field)
        self.page.click(where)


def test_from_an_empty_project_to_an_answer_by_mouse_with_few_fields(tmp_path, tiny_model_dir, open_page):
    shutil.copytree(tiny_model_dir, tmp_path / "models/tiny")
    running = web.start_board(tmp_path)
    try:
        page = open_page(running.url)
        touched = Touched(page)
        page.wait_for_selector("#home-sample-button")
        page.wait_for_selector("#home-lamp .lamp")
        web.shoot(page, "home-empty")
        page.click("#home-sample-button")
        page.click("#home-told a")
        page.wait_for_url("**/train?data=report_classify_en_train")
        touched.choose("model_name_or_path", "models/tiny")
        page.wait_for_selector("#train-model-told p")
        page.click("#next-data")
        page.wait_for_selector("#train-data-told li")
        web.shoot(page, "train-data")
        page.click("#next-method")
        page.wait_for_selector("#train-preset input")
        touched.click("preset", "#train-preset label >> nth=0")
        page.wait_for_function("document.querySelector('#field-num_train_epochs :is(input, textarea)')?.value === '1'")
        web.shoot(page, "train-method")
        page.click("#next-check")
        page.wait_for_selector(".check .good", timeout=PATIENCE_MS)
        web.shoot(page, "train-check")
        page.click("#next-run")
        page.wait_for_function("document.querySelector('#field-name :is(input, textarea)')?.value")
        web.shoot(page, "train-run")
        page.click("#train-start")
        page.wait_for_url("**/runs?run=runs/report_classify_en-lora", timeout=PATIENCE_MS)
        shows(page, "finished")
        web.shoot(page, "runs-finished")
        assert page.query_selector("#runs-curves polyline")
        assert (tmp_path / "runs/report_classify_en-lora/adapter_model.safetensors").is_file()
        page.click("#run-actions a:has-text('Chat')")
        page.wait_for_selector("#chat-status .good", timeout=PATIENCE_MS)
        page.wait_for_function("document.querySelector('#chat-model-0 input')?.value", timeout=PATIENCE_MS)
        touched.click("max_tokens", "#chat-settings button")  # the tiny model's window is as long as the usual limit
        typed(page, "#chat-max-tokens", "8", "input[type=number]")
        touched.click("prompt", "#chat-prompt textarea")
        page.keyboard.type("What is wrong with the printer?")  # the only thing that no mouse can do
        page.click("#chat-send")
        page.wait_for_selector(".side .assistant small:has-text('tokens in')", timeout=PATIENCE_MS)
        assert len(touched.fields) <= 12
    finally:
        unload(running)


def test_a_first_run_by_mouse_with_a_data_set_from_the_list(board, project, open_page):
    page = open_page(f"{board.url}/train")
    choose(page, "model_name_or_path", "models/tiny")
    page.wait_for_selector("#train-model-told p")
    page.click("#next-data")
    page.wait_for_selector("#field-dataset input")
    choose(page, "dataset", "floors")
    page.wait_for_selector("#train-data-told li")
    page.keyboard.press("Escape")
    page.click("#next-method")
    page.wait_for_selector("#train-preset input")
    page.click("#next-check")
    page.wait_for_selector(".check .good", timeout=PATIENCE_MS)
    page.click("#next-run")
    page.wait_for_function("document.querySelector('#field-name :is(input, textarea)')?.value")
    page.click("#train-start")
    page.wait_for_url("**/runs?run=runs/floors-lora", timeout=PATIENCE_MS)
    shows(page, "finished")
    link = page.get_attribute("#run-actions a:has-text('Chat')", "href")
    assert link == "chat?run=runs/floors-lora"
    assert (project / "runs/floors-lora/adapter_model.safetensors").is_file()
    page.click("[data-act=export]")
    page.wait_for_selector(".run-head .note:has-text('Exported into runs/floors-lora/export')", timeout=PATIENCE_MS)
    assert (project / "runs/floors-lora/export/model.safetensors").is_file()


def test_from_an_empty_project_to_an_answer_by_keyboard_alone(tmp_path, tiny_model_dir, open_page):
    shutil.copytree(tiny_model_dir, tmp_path / "models/tiny")
    running = web.start_board(tmp_path)
    try:
        page = open_page(running.url)
        press(page, "#home-sample-button")
        press(page, "#home-told a")
        page.wait_for_url("**/train?data=report_classify_en_train")
        page.wait_for_selector("#field-model_name_or_path input")
        tab_to(page, "#field-model_name_or_path input")
        page.keyboard.type("models/tiny")
        page.keyboard.press("Enter")
        page.wait_for_selector("#train-model-told p")
        press(page, "#next-data", leads_to="#next-method")
        press(page, "#next-method", leads_to="#train-preset input")
        tab_to(page, "#train-preset input")
        page.keyboard.press("Space")
        page.wait_for_function("document.querySelector('#field-num_train_epochs :is(input, textarea)')?.value === '1'")
        press(page, "#next-check", leads_to=".check .good")
        press(page, "#next-run", leads_to="#field-name :is(input, textarea)")
        page.wait_for_function("document.querySelector('#field-name :is(input, textarea)')?.value")
        press(page, "#train-start")
        page.wait_for_url("**/runs?run=**", timeout=PATIENCE_MS)
        shows(page, "finished")
        press(page, "#run-actions a[href^='chat']")
        page.wait_for_selector("#chat-status .good", timeout=PATIENCE_MS)
        page.wait_for_function("document.querySelector('#chat-model-0 input')?.value", timeout=PATIENCE_MS)
        press(page, "#chat-settings button")
        tab_to(page, "#chat-max-tokens input[type=number]")
        page.keyboard.press("Control+A")
        page.keyboard.type("8")
        tab_to(page, "#chat-prompt textarea")
        page.keyboard.type("What is wrong with the printer?")
        page.keyboard.press("Enter")
        page.wait_for_selector(".side .assistant small:has-text('tokens in')", timeout=PATIENCE_MS)
    finally:
        unload(running)


def unload(running: web.Board) -> None:
    """End a board and the models it started."""
    for server in servers(Board(running.folder)):
        stop_server(server)
    running.stop()


def press(page, where: str, leads_to: str | None = None) -> None:
    """Go to a button or link by Tab, and press Enter; once more, as people do, when what it leads to does not come."""
    for patience_ms in (PATIENCE_MS / 8, PATIENCE_MS):
        page.wait_for_selector(f"{where}:visible:not([disabled])")
        tab_to(page, where)
        page.keyboard.press("Enter")
        if leads_to is None:
            return
        with contextlib.suppress(Exception):  # playwright's TimeoutError
            page.wait_for_selector(f"{leads_to}:visible", timeout=patience_ms)
            return
    raise AssertionError(f"{where} does not lead to {leads_to}")


def tab_to(page, where: str, most: int = 60) -> None:
    """Press Tab until an element has the focus; after the last one on the page comes the first."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("where => document.activeElement.matches(where)", where):
            return
    raise AssertionError(f"{most} times Tab do not lead to {where}")


def test_a_run_outlives_reload_closed_pages_and_a_killed_board(board, project, open_page):
    run = start_long(project, "outlives")
    page = open_page(f"{board.url}/runs?run=runs/outlives")
    shows(page, "running")
    page.reload()
    shows(page, "running")
    text = page.inner_text("body")
    assert not re.search(r"\b(Dropdown|Textbox|__i18n__)\b", text)
    page.context.close()
    seen = steps_of(run)
    trains(run, beyond=seen)
    board.kill()
    seen = steps_of(run)
    trains(run, beyond=seen)
    again = web.start_board(project, port=board.port)
    board.process = again.process  # the other tests go on with it
    page = open_page(f"{board.url}/runs?run=runs/outlives")
    shows(page, "running")
    page.click("[data-act=stop]")
    page.wait_for_selector("#run-notice .note")
    shows(page, "stopped")
    assert run.checkpoints()
    page.click("[data-act=resume]")
    shows(page, "running")
    os.kill(run.read_state().pid, signal.SIGKILL)  # what the system does when memory runs out
    page.wait_for_selector(".run-head .badge.failed, .run-head .badge.lost", timeout=10_000 * web.SLOW)
    assert page.query_selector(".run-head .trouble")
    web.shoot(page, "runs-failed")
    before = steps_of(run)
    page.click("[data-act=resume]")
    trains(run, beyond=max(before - 20, 0))
    page.click("[data-act=kill]")
    shows(page, "stopped")
    assert process_start(run.read_state().pid) is None


def test_a_second_run_waits_and_two_readers_have_their_own_language_and_selection(board, project, open_page):
    first = start_long(project, "first")
    ended(first, "running")
    second = start_long(project, "second")
    english = open_page(f"{board.url}/runs?run=runs/first")
    chinese = open_page(f"{board.url}/runs?run=runs/second", language="zh")
    shows(english, "running")
    shows(chinese, "queued")
    web.shoot(chinese, "runs-queued-zh")
    assert "running" in english.inner_text(".run-head h2")
    assert "排队中" in chinese.inner_text(".run-head h2")
    chinese.click("[data-act=stop]")
    shows(chinese, "stopped")
    assert "runs/first" in english.inner_text(".run-head h2")
    chinese.click("#language")
    chinese.wait_for_selector("text=Fine-tune")
    assert "Runs" in chinese.inner_text("h1")
    launch.kill_run(first)
    ended(first)
    assert second.read_state().state == "stopped"


BAD = {
    "data": {"val_size": "-0.5", "cutoff_len": "1.5", "max_samples": "some"},
    "method": {
        "num_train_epochs": "0",
        "learning_rate": "abc",
        "per_device_train_batch_size": "1.5",
        "lora_rank": "-3",
    },
}


def test_a_bad_value_is_told_at_its_field_and_nothing_goes_on(board, open_page):
    page = open_page(f"{board.url}/train?data=floors")
    page.click("#next-data")
    page.wait_for_selector("#field-model_name_or_path:has-text('Choose a model')")
    choose(page, "model_name_or_path", "models/tiny")
    page.click("#next-data")
    for step, leads_on, beyond in (
        ("data", "#next-method", "#train-preset"),
        ("method", "#next-check", "#check-again"),
    ):
        page.wait_for_selector(f"{leads_on}:visible")
        for field, value in BAD[step].items():
            before = page.input_value(f"#field-{field} :is(input, textarea)")
            typed(page, f"#field-{field}", value)
            page.wait_for_selector(f"#field-{field}:has-text('expected')")
            page.click(leads_on)
            page.wait_for_timeout(500)
            assert page.is_visible(f"#field-{field}:has-text('expected')")
            assert not page.is_visible(beyond)
            typed(page, f"#field-{field}", before)
            page.wait_for_selector(f"#field-{field}:not(:has-text('expected'))")
        page.click(leads_on)
        page.wait_for_selector(f"{beyond}:visible")
    page.wait_for_selector(".check .good", timeout=PATIENCE_MS)
    page.click("#next-run")
    page.wait_for_function("document.querySelector('#field-name :is(input, textarea)')?.value")
    typed(page, "#field-name", "../out")
    page.click("#train-start")
    page.wait_for_selector("#field-name:has-text('name has letters')")
    assert not (board.folder / "out").exists()


def test_two_readers_fill_in_their_own_forms(board, open_page):
    one, other = (open_page(f"{board.url}/train?data=floors") for _ in range(2))
    for page in (one, other):
        choose(page, "model_name_or_path", "models/tiny")
        page.click("#next-data")
        page.click("#next-method")
        page.wait_for_selector("#train-preset input")
    one.click("#train-preset label >> nth=0")
    one.wait_for_function("document.querySelector('#field-num_train_epochs :is(input, textarea)').value === '1'")
    typed(other, "#field-lora_rank", "32")
    one.click("#train-recipe button")
    one.wait_for_selector("#train-recipe .cm-content:has-text('num_train_epochs: 1')")
    assert "lora_rank: 32" not in one.inner_text("#train-recipe .cm-content")
    other.click("#train-recipe button")
    other.wait_for_selector("#train-recipe .cm-content:has-text('lora_rank: 32')")
    assert "num_train_epochs: 3" in other.inner_text("#train-recipe .cm-content")


def test_every_setting_is_under_advanced_and_found_by_what_it_is_for(board, open_page):
    page = open_page(f"{board.url}/train?data=floors", language="zh")
    choose(page, "model_name_or_path", "models/tiny")
    page.click("#next-data")
    page.click("#next-method")
    page.wait_for_selector("#train-preset input")
    page.click("#train-advanced button")
    page.wait_for_selector("#advanced-weight_decay, #advanced-max_steps")
    typed(page, "#advanced-search", "种子")
    page.wait_for_selector("#advanced-seed")
    web.settled(page)  # each letter of a search makes the fields anew
    typed(page, "#advanced-seed", "7")
    page.click("#train-recipe button")
    page.wait_for_selector("#train-recipe .cm-content:has-text('seed: 7')")
    web.settled(page)
    assert web.serious(page) == []
    web.shoot(page, "train-advanced-zh")


def test_a_problem_in_the_text_has_a_fix_that_leads_on(board, open_page):
    page = open_page(f"{board.url}/train?data=floors")
    choose(page, "model_name_or_path", "models/tiny")
    page.wait_for_selector("#train-model-told p")
    page.click("#train-recipe button")
    page.click("#train-recipe .cm-content")
    page.keyboard.press("Control+End")
    page.keyboard.type("\nlora_rnk: 16")
    page.wait_for_timeout(1500)
    for button in ("#next-data", "#next-method", "#next-check"):
        page.click(button)
    page.wait_for_selector("[data-fix]", timeout=PATIENCE_MS)
    web.shoot(page, "train-problems")
    assert page.is_disabled("#next-run")
    page.click("[data-fix]")
    page.wait_for_selector(".check .good", timeout=PATIENCE_MS)
    assert "lora_rank: 16" in page.inner_text("#train-recipe .cm-content")


def fake_run(project: Path, name: str, points: int) -> RunDir:
    run = RunDir(project / "runs" / name)
    run.path.mkdir(parents=True)
    with open(run.log_path, "w", encoding="utf-8") as log:
        for step in range(points):
            loss = 0.5 + 2 * math.exp(-4 * step / points) + (step % 97) / 970 + sum(name.encode()) % 50 / 50
            log.write(json.dumps({"current_steps": step, "loss": loss, "lr": 1e-4}) + "\n")
    run.write_state(state="finished", step=points, total_steps=points, start_time=time.time())
    return run


def test_a_hundred_thousand_points_and_two_hundred_megabytes_of_log_stay_light(board, project, open_page):
    run = fake_run(project, "large", 100_000)
    with open(run.path / "console.log", "w", encoding="utf-8") as log:
        for _ in range(200):
            log.write(("train 1/2 loss 1.0  900 tokens/s\n" * 31_000)[: 1 << 20])
        log.write("\nthe last line\n")
    page = open_page(f"{board.url}/runs?run=runs/large")
    page.wait_for_selector("#runs-curves polyline", timeout=PATIENCE_MS)
    points = page.get_attribute("#runs-curves polyline", "points").split()
    assert len(points) <= 2000
    page.wait_for_selector("pre.log:has-text('the last line')")
    assert page.evaluate("performance.memory.usedJSHeapSize") < 150e6
    shutil.rmtree(run.path)


def test_twenty_runs_of_five_thousand_points_lie_over_each_other(board, project, open_page):
    runs = [fake_run(project, f"many-{number:02}", 5000) for number in range(20)]
    page = open_page(f"{board.url}/runs")
    page.wait_for_selector("[data-tick]")
    for run in runs:
        page.click(f"[data-tick='runs/{run.path.name}']")
        page.wait_for_selector(f"#runs-curves .legend:has-text('{run.path.name}')")
    assert len(page.query_selector_all("#runs-curves polyline")) == 20
    web.shoot(page, "runs-many")
    for run in runs:
        shutil.rmtree(run.path)


def test_names_that_are_markup_are_shown_as_they_are(board, project, open_page):
    run = fake_run(project, "<img src=x onerror=alert(1)>", 5)
    (run.path / "console.log").write_text("<script>alert(2)</script> [x](javascript:alert(3))\n")
    page = open_page(f"{board.url}/runs")
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    page.click("[data-run*='onerror']")
    page.wait_for_selector("pre.log")
    page.wait_for_timeout(500)
    assert not page.query_selector("#page img[src=x], #page pre script, #page a[href^=javascript]")
    shutil.rmtree(run.path)


def test_the_name_must_be_typed_to_delete(board, project, open_page):
    run = fake_run(project, "unwanted", 5)
    page = open_page(f"{board.url}/runs?run=runs/unwanted")
    page.wait_for_selector(".run-head")
    page.click("[data-act=delete]")
    typed(page, "#run-delete", "something")
    page.click("#run-delete button >> nth=0")
    page.wait_for_selector("#run-notice .trouble")
    assert run.path.exists()
    typed(page, "#run-delete", "unwanted")
    page.click("#run-delete button >> nth=0")
    page.wait_for_selector("#run-notice .note:has-text('Deleted')")
    assert not run.path.exists()


@pytest.mark.parametrize(("language", "theme", "width"), [("en", "light", 1440), ("zh", "dark", 390)])
def test_runs_with_something_in_them_are_accessible_and_fit_a_phone(board, project, open_page, language, theme, width):
    runs = [fake_run(project, f"shown-{number}", 300) for number in range(2)]
    runs[1].write_state(state="failed", error="out of memory: 4.1 GB more were asked for", alarms=["the loss jumped"])
    page = open_page(f"{board.url}/runs?run=runs/shown-1", language=language, theme=theme, width=width)
    page.wait_for_selector(".run-head .trouble")
    page.click("[data-tick='runs/shown-0']")
    page.wait_for_selector("#runs-curves .legend:has-text('shown-0')")
    page.click("[data-tick='runs/shown-1']")
    page.wait_for_selector("#runs-curves .legend li >> nth=1")
    web.settled(page)
    web.shoot(page, f"runs-full-{language}-{theme}-{width}")
    assert web.serious(page) == []
    assert web.sideways(page) <= 0
    assert ("内存" in page.inner_text("#run-head")) == (language == "zh")
    for run in runs:
        shutil.rmtree(run.path)
