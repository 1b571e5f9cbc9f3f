"""A file that somebody brings becomes an entry of dataset_info.json."""

import json
from pathlib import Path

import pytest

pytest.importorskip("llmforge.webui")
from llmforge.data.entry import DatasetEntry
from llmforge.data.read import read_examples
from llmforge.data.registry import load_registry
from llmforge.errors import RecipeError
from llmforge.webui.board import Board
from llmforge.webui.data_copy import save_usable
from llmforge.webui.data_source import Meaning, add, look, preview
from llmforge.webui.sentences import translated
from llmforge.webui.words import Words


@pytest.fixture
def board(tmp_path: Path) -> Board:
    (tmp_path / "data").mkdir()
    return Board(tmp_path)


def write_xlsx(path: Path, rows: list[list[str]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def test_a_sheet_with_its_own_column_names_is_mapped_and_read(board: Board) -> None:
    sheet = write_xlsx(board.root / "faq.xlsx", [["问题", "答案"], ["打印机坏了", "重启它"], ["密码忘了", "点重置"]])
    source = look(sheet)
    assert source.columns == ["问题", "答案"]
    assert source.guess == Meaning("questions")
    name, entry = add(board, "faq", source, Meaning("questions", {"prompt": "问题", "response": "答案"}))
    assert entry["file_name"] == "../faq.xlsx"
    examples, report = read_examples(load_registry(board.data)[name], stage="sft")
    assert [m.content for m in examples[0].messages] == ["打印机坏了", "重启它"]
    assert report.rows_in == report.rows_out == 2


def test_the_source_is_not_changed_and_an_upload_is_copied(board: Board) -> None:
    upload = board.uploads / "abc" / "chats.jsonl"
    upload.parent.mkdir(parents=True)
    text = json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}) + "\n"
    upload.write_text(text)
    source = look(upload)
    assert source.guess == Meaning("chats", {"messages": "messages"})
    _, entry = add(board, "chats", source, source.guess)
    assert entry == {"file_name": "uploads/chats.jsonl", "columns": {"messages": "messages"}, "formatting": "openai"}
    assert (board.data / "uploads/chats.jsonl").read_text() == upload.read_text() == text


def test_another_upload_of_the_same_name_keeps_both(board: Board) -> None:
    for number, word in enumerate("ab"):
        upload = board.uploads / word / "q.csv"
        upload.parent.mkdir(parents=True)
        upload.write_text(f"instruction,output\nask,{word}\n")
        add(board, f"q{number}", look(upload), look(upload).guess)
    assert sorted(path.name for path in (board.data / "uploads").iterdir()) == ["q.csv", "q_2.csv"]


@pytest.mark.parametrize(
    ("row", "meaning"),
    [
        ({"instruction": "i", "input": "x", "output": "o"}, "questions"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "chats"),
        ({"prompt": "p", "chosen": "good", "rejected": "bad"}, "pairs"),
        ({"prompt": "p", "response": "r", "label": True}, "verdicts"),
        ({"text": "a page"}, "texts"),
    ],
)
def test_what_a_file_holds_is_seen_and_can_be_read(board: Board, row: dict, meaning: str) -> None:
    path = board.root / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    source = look(path)
    assert source.guess.kind == meaning
    examples, report = preview(source.guess.as_entry("../rows.jsonl", row), board.data)
    assert (len(examples), report.rejected) == (1, [])


def test_a_missing_column_and_one_for_two_parts_are_refused_by_name(board: Board) -> None:
    path = board.root / "rows.csv"
    path.write_text("a,b\n1,2\n")
    source = look(path)
    with pytest.raises(RecipeError, match="Choose the column"):
        add(board, "x", source, Meaning("questions", {"prompt": "a"}))
    with pytest.raises(RecipeError, match="The column a is used twice"):
        add(board, "x", source, Meaning("questions", {"prompt": "a", "response": "a"}))


def test_a_taken_name_is_not_taken_over(board: Board) -> None:
    for name in ("one.csv", "two.csv"):
        (board.root / name).write_text("instruction,output\nask,reply\n")
    add(board, "mine", look(board.root / "one.csv"), look(board.root / "one.csv").guess)
    with pytest.raises(RecipeError, match="'mine' already stands for"):
        add(board, "mine", look(board.root / "two.csv"), look(board.root / "two.csv").guess)


@pytest.mark.parametrize("text", ["", "   \n"])
def test_an_empty_file_says_so(board: Board, text: str) -> None:
    path = board.root / "empty.jsonl"
    path.write_text(text)
    with pytest.raises(RecipeError, match="empty"):
        look(path)


def test_a_copy_holds_the_usable_rows_as_they_are_and_the_file_stays(board: Board) -> None:
    sheet = board.data / "help.csv"
    text = "frage,antwort,nr\nWo?,Hier.,1\n,Niemand fragt.,2\nWann?,Morgen.,3\n"
    sheet.write_text(text)
    add(board, "help", look(sheet), Meaning("questions", {"prompt": "frage", "response": "antwort"}))
    assert save_usable(board, "help") == ("help_usable", 2)
    assert sheet.read_text() == text
    rows = [json.loads(line) for line in (board.data / "help_usable.jsonl").read_text().splitlines()]
    assert [(row["frage"], row["nr"]) for row in rows] == [("Wo?", "1"), ("Wann?", "3")]
    examples, report = read_examples(load_registry(board.data)["help_usable"], stage="sft")
    assert (len(examples), report.rejected) == (2, [])
    assert save_usable(board, "help")[1] == 2  # an earlier copy is replaced


def test_why_rows_are_left_out_is_told_in_chinese(board: Board) -> None:
    rows = [
        {"instruction": "问", "output": "答"},
        {"instruction": "问", "output": ""},
        {"instruction": 7, "output": "答"},
        {"output": "答"},
        [1],
    ]
    (board.data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, report = read_examples(DatasetEntry("rows", board.data / "rows.jsonl"), stage="sft")
    told = [translated(Words("zh"), reason) for reason in report.reasons()]
    assert None not in told
    assert "回答是空的" in told
