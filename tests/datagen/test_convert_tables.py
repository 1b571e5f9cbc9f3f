"""Tables to training files: golden rows, every left-out row with its reason, odd files read and reported."""

import csv
import hashlib
import io
import json
from pathlib import Path

import pytest

from llmforge.datagen.convert import ConvertResult, convert
from llmforge.datagen.convert_command import convert_main
from llmforge.datagen.recipe import load_dataset_recipe
from llmforge.errors import RecipeError, RunError

REPO = Path(__file__).parents[2]
SHARED = REPO / "../shared/data"
# REQUIREMENTS 3.4, with a title in quotes, two replies for each title, one empty, one with a line break inside.
SIX_ROWS = [
    ["title", "question", "reply", "is_best"],
    ["押金不退怎么办", "房东说墙面有划痕。", "打12345", "0"],
    ["押金不退怎么办", "房东说墙面有划痕。", "先协商，\n再起诉。", "1"],
    ['"最终解释权"有效吗', '"最终解释权"有效吗', "无效。", "0"],
    ['"最终解释权"有效吗', '"最终解释权"有效吗', "", "1"],
    ["加班费怎么算", "", "不低于一点五倍。", "1"],
    ["加班费怎么算", "", "算了吧", "0"],
]
GOLDEN = (
    '{"conversations": [{"role": "user", "content": "押金不退怎么办\\n房东说墙面有划痕。"}, '
    '{"role": "assistant", "content": "先协商，\\n再起诉。"}]}\n'
    '{"conversations": [{"role": "user", "content": "\\"最终解释权\\"有效吗"}, '
    '{"role": "assistant", "content": "无效。"}]}\n'
    '{"conversations": [{"role": "user", "content": "加班费怎么算"}, '
    '{"role": "assistant", "content": "不低于一点五倍。"}]}\n'
)
GOLDEN_FAQ = "5c3060478e8e93e164baa5d86fa919e07a3bf3cfab9efe5dd07b8e74add94baa"  # of the 25 lines, read by hand
RULES = """\
kind: dataset
convert: {from: csv, encoding: utf-8-sig, map: {user: title, assistant: reply}, append_question: if_different,
          where: "is_best == '1' or not any_best(title)", group: title, drop_empty: true, to: conversations}
"""


@pytest.fixture(autouse=True)
def rules(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules.yaml").write_text(RULES)


def as_csv(rows: list[list[str]]) -> str:
    sheet = io.StringIO(newline="")
    csv.writer(sheet, lineterminator="\r\n").writerows(rows)
    return sheet.getvalue()


def converted(path: Path, *words: str) -> ConvertResult:
    return convert(load_dataset_recipe(["rules.yaml", "convert.out=out", *words], "convert"), [path])


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_six_rows_become_three_lines_in_any_encoding(tmp_path, encoding):
    (tmp_path / "six.csv").write_bytes(as_csv(SIX_ROWS).encode(encoding))
    result = converted(Path("six.csv"))
    assert Path("out/six.jsonl").read_bytes() == GOLDEN.encode()
    assert (result.report.rows_in, result.report.rows_out) == (6, 3)
    reasons = {source.row: reason.partition(":")[0] for source, reason in result.report.rejected}
    assert reasons == {1: "where is false", 4: "reply is empty", 6: "where is false"}
    told = [what for _, what in result.report.fixed]
    assert any("GB18030" in what for what in told) == (encoding == "gb18030")
    assert any(what.startswith("encoding: utf-8-sig was said") for what in told) == (encoding in ("gb18030", "utf-16"))


def test_our_own_faq_converts_to_the_conversations_it_was_made_with():
    result = converted(REPO / "data/legal_faq.csv")
    made = [REPO / f"data/legal_faq_chat_{part}.jsonl" for part in ("train", "test")]
    expected = [line for path in made for line in path.read_text(encoding="utf-8").splitlines()]
    assert sorted(Path("out/legal_faq.jsonl").read_text(encoding="utf-8").splitlines()) == sorted(expected)
    assert result.report.rows_in == result.report.rows_out + len(result.report.rejected) == 128


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "own/legal_qa.csv").is_file(), reason="no shared data beside the checkout")
def test_the_legal_questions_convert_to_the_golden_lines_with_every_odd_row_named():
    with open(SHARED / "own/legal_qa.csv", encoding="utf-8-sig", newline="") as file:
        sheet = list(csv.DictReader(file))
    # The rule of REQUIREMENTS 3.4, written once more: of each title the reply that is marked best, else the first.
    best: dict[str, dict] = {}
    for row in sheet:
        title = row["title"].strip()
        if title and row["reply"] and (title not in best or row["is_best"] > best[title]["is_best"]):
            best[title] = row
    golden = ""
    for title, row in best.items():
        question = f"{title}\n{row['question']}" if row["question"] not in ("", title) else title
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": row["reply"]}]
        golden += json.dumps({"conversations": chat}, ensure_ascii=False) + "\n"

    result = converted(SHARED / "own/legal_qa.csv")
    assert Path("out/legal_qa.jsonl").read_bytes() == golden.encode()
    assert hashlib.sha256(golden.encode()).hexdigest() == GOLDEN_FAQ
    assert (result.report.rows_in, result.report.rows_out) == (37, 25)
    reasons = {source.row: reason.partition(":")[0] for source, reason in result.report.rejected}
    false = dict.fromkeys((2, 4, 5, 8, 10, 13, 16, 22, 35), "where is false")
    doubles = {33: "another row with this title was taken"}
    assert reasons == {**false, **doubles, 34: "reply is empty", 36: "title is empty"}
    changes = [(source.row, what) for source, what in result.report.fixed]
    assert changes == [(35, "title: blanks around the text cut"), (35, "reply: HTML written as text")]


def test_a_title_with_no_best_reply_keeps_its_first_and_blanks_make_no_new_title():
    rows = [SIX_ROWS[0], ["租房", "", "可以&nbsp;申请<br>仲裁。", "0"], [" 租房 ", "", "别的", "0"]]
    Path("t.csv").write_text(as_csv(rows), encoding="utf-8")
    result = converted(Path("t.csv"))
    assert rows_of(Path("out/t.jsonl"))[0]["conversations"][1]["content"] == "可以 申请\n仲裁。"
    assert [reason for _, reason in result.report.rejected] == ["another row with this title was taken"]
    assert ("t.csv row 1", "reply: HTML written as text") in [(str(s), what) for s, what in result.report.fixed]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert.map={user: title, assistant: title}"], "column 'title' is both user and assistant"),
        (["convert.map={user: [title, reply]}"], "user: got ['title', 'reply'], expected one column"),
        (["convert.map={user: title}"], "the reply: no column is assistant or output"),
        (["convert.map={user: titel, assistant: reply}"], "no column 'titel'. Did you mean 'title'? Present: title"),
        (["convert.map={usr: title, assistant: reply}"], "no such part 'usr'. Did you mean 'user'?"),
        (["convert.group=tilte"], "no column 'tilte'. Did you mean 'title'?"),
        (["convert.where=is_bst == '1'"], "'is_bst' is no column. Did you mean 'is_best'?"),
        (["convert.where=any_bst(title)"], "no column 'is_bst'"),
        (["convert.where=__import__('os')"], "is no function"),
        (["convert.split={dev: 2, test: 1}"], "leave none of 3 rows"),
        (["convert.split={dve: 2}"], "no such key 'dve'. Did you mean 'dev'?"),
        (["convert.split={dev: 1.5}"], "dev: got 1.5, expected a share below 1 or a number of rows"),
        (["convert.split={dev: 1, group_by: titel}"], "has no 'titel'"),
        (["convert.format=alpaca"], "to says conversations, format says alpaca"),
        (["convert.key_order=schema"], "schema needs output_schema"),
        (["convert.drop_empty=false"], "six.csv row 4: reply is empty (drop_empty: false)"),
        (["convert.to=conversation"], "Did you mean 'conversations'?"),
        (["convert.where=is_best == '7'"], "all 6 rows were left out"),
    ],
)
def test_a_wrong_rule_is_refused_before_anything_is_written(words, message):
    Path("six.csv").write_text(as_csv(SIX_ROWS), encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        converted(Path("six.csv"), *words)
    assert message in str(error.value)
    assert not Path("out").exists()


def test_the_same_title_in_two_columns_of_the_recipe_is_a_duplicate_key():
    Path("slip.yaml").write_text("kind: dataset\nconvert:\n  map: {user: title, user: reply}\n")
    with pytest.raises(RecipeError, match="user: given twice"):
        load_dataset_recipe(["slip.yaml"], "convert")


def test_a_group_never_crosses_a_split_and_the_order_of_rows_changes_no_side():
    rows = [{"group": f"g{i % 20}", "instruction": f"q{i}", "output": "a"} for i in range(100)]
    sides = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in order))
        words = ["name=x", "convert.split={dev: 0.1, test: 20, group_by: group}", f"convert.out={name}"]
        result = convert(load_dataset_recipe(words, "convert"), [Path(f"{name}.jsonl")])
        assert result.rows == {"x_train": 70, "x_dev": 10, "x_test": 20}
        questions = {part: {row["instruction"] for row in rows_of(path)} for part, path in result.files.items()}
        sides.append(questions)
        groups = [{int(q[1:]) % 20 for q in side} for side in questions.values()]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 20
    assert sides[0] == sides[1]


def test_an_answer_that_is_an_object_becomes_json_text_in_the_declared_order():
    Path("o.jsonl").write_text(
        '{"instruction": "标绘", "input": "", "output": {"b": [{"z": 1, "y": 2}], "a": "箭头"}}\n'
    )
    Path("s.json").write_text(
        '{"properties": {"a": {}, "b": {"items": {"properties": {"y": {}, "z": {}}}}}, "type": "object"}'
    )
    expected = {
        "given": '{"b": [{"z": 1, "y": 2}], "a": "箭头"}',
        "sorted": '{"a": "箭头", "b": [{"y": 2, "z": 1}]}',
        "schema": '{"a": "箭头", "b": [{"y": 2, "z": 1}]}',
    }
    for order, text in expected.items():
        words = ["output_schema=s.json", f"convert.key_order={order}", "convert.out=out"]
        convert(load_dataset_recipe(words, "convert"), [Path("o.jsonl")])
        assert rows_of(Path("out/o.jsonl"))[0]["output"] == text
    with pytest.raises(RecipeError, match="output is no text"):
        convert(load_dataset_recipe(["convert.output_json=refuse"], "convert"), [Path("o.jsonl")])


def test_an_answer_that_is_json_text_keeps_its_tags():
    text = '{"html": "<p>x</p>"}'
    Path("o.jsonl").write_text(json.dumps({"instruction": "q", "output": text}) + "\n")
    convert(load_dataset_recipe(["convert.out=out"], "convert"), [Path("o.jsonl")])
    assert rows_of(Path("out/o.jsonl"))[0]["output"] == text


def test_records_become_texts_for_pretraining():
    Path("p.csv").write_text("product,category\n水泵,排水/移动\n,空\n", encoding="utf-8")
    words = ["convert.text={{product}} 属于 {{category}}", "convert.out=out", "name=p", "register=reg"]
    result = convert(load_dataset_recipe(words, "convert"), [Path("p.csv")])
    assert rows_of(Path("out/p.jsonl")) == [{"text": "水泵 属于 排水/移动"}, {"text": "属于 空"}]
    assert result.report.rows_in == 2


@pytest.mark.parametrize("shape", ["alpaca", "conversations", "messages", "sharegpt"])
def test_every_shape_reads_back_as_the_same_conversation(shape):
    from llmforge.data.read import read_examples
    from llmforge.data.registry import load_registry

    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "a2"},
    ]
    Path("c.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    words = ["name=c", f"convert.to={shape}", "convert.out=reg", "register=reg"]
    convert(load_dataset_recipe(words, "convert"), [Path("c.jsonl")])
    examples, report = read_examples(load_registry("reg")["c"], stage="sft")
    assert [(m.role, m.content) for m in examples[0].messages] == [(m["role"], m["content"]) for m in chat]
    assert report.rejected == []


def test_tool_calls_survive_sharegpt_and_messages():
    from llmforge.data.read import read_examples
    from llmforge.data.registry import load_registry, resolve_dataset

    before, _ = read_examples(resolve_dataset("hotline_tools", REPO / "data"), stage="sft", max_samples=5)
    for shape in ("sharegpt", "messages"):
        words = [f"name={shape}", f"convert.to={shape}", "convert.out=reg", "register=reg"]
        convert(load_dataset_recipe(words, "convert"), [REPO / "data/hotline_tools.jsonl"])
        after, _ = read_examples(load_registry("reg")[shape], stage="sft", max_samples=5)
        assert [e.messages for e in after] == [e.messages for e in before]
        assert [e.tools for e in after] == [e.tools for e in before]


def test_a_spreadsheet_and_parquet_convert_like_the_table_they_hold():
    import openpyxl
    import pyarrow
    import pyarrow.parquet

    book = openpyxl.Workbook()
    for row in SIX_ROWS:
        book.active.append([cell or None for cell in row])
    book.save("six.xlsx")
    columns = {name: [row[i] for row in SIX_ROWS[1:]] for i, name in enumerate(SIX_ROWS[0])}
    pyarrow.parquet.write_table(pyarrow.table(columns), "six.parquet")
    for name in ("six.xlsx", "six.parquet"):
        converted(Path(name), "convert.from=auto", "convert.encoding=auto")
        assert Path("out/six.jsonl").read_text(encoding="utf-8") == GOLDEN


def test_a_folder_of_shards_and_a_table_under_another_ending_convert():
    Path("shards").mkdir()
    for name, part in (("a.csv", SIX_ROWS[:4]), ("b.csv", [SIX_ROWS[0], *SIX_ROWS[4:]])):
        Path("shards", name).write_text(as_csv(part), encoding="utf-8")
    result = convert(load_dataset_recipe(["rules.yaml", "name=six", "convert.out=out"], "convert"), [Path("shards")])
    assert sorted(map(str, result.sources)) == ["shards/a.csv", "shards/b.csv"]
    assert Path("out/six.jsonl").read_text(encoding="utf-8") == GOLDEN
    Path("dump.db").write_text(as_csv(SIX_ROWS), encoding="utf-8")
    assert converted(Path("dump.db")).report.rows_out == 3


def test_a_file_that_cannot_be_written_is_one_message(monkeypatch):
    Path("six.csv").write_text(as_csv(SIX_ROWS), encoding="utf-8")
    Path("out").write_text("a file where the folder should be")
    with pytest.raises(RunError, match=r"out/six\.jsonl cannot be written: "):
        converted(Path("six.csv"))


def test_the_command_reads_flags_and_prints_json(capsys):
    Path("six.csv").write_text(as_csv(SIX_ROWS), encoding="utf-8")
    words = ["six.csv", "--map", "{user: title, assistant: reply}", "--group", "title", "--out", "o", "--json"]
    assert convert_main([*words, "--name", "faq", "--register", "reg"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows_in"], told["rows_ok"], told["rows"]) == (6, 3, {"faq": 3})
    assert told["rejected"][0] == {"file": "six.csv", "row": 2, "reason": "another row with this title was taken"}
    assert json.loads(Path("reg/dataset_info.json").read_text())["faq"]["file_name"] == "../o/faq.jsonl"
    assert "faq.jsonl | 3" in Path("o/faq.md").read_text()


def test_a_word_that_is_neither_recipe_nor_file_is_refused():
    with pytest.raises(RecipeError, match="'fqa' is neither a recipe"):
        convert_main(["fqa"])
    with pytest.raises(RecipeError, match=r"six\.csv: no such file"):
        convert_main(["six.csv"])
    with pytest.raises(RecipeError, match=r"convert\.whree|whree: no such key"):
        convert_main(["rules.yaml", "--whree", "x"])
