import gzip
import json

import pytest

from llmforge.data.charset import detect
from llmforge.data.files import data_files, kind_of, read_rows
from llmforge.errors import RecipeError

ROWS = [{"instruction": "分类", "output": "投诉"}, {"instruction": "b", "output": "c\r\nd"}]
CHINESE = "打印机卡纸了，请派人来修。电梯故障，三楼无法停靠。\n"


def rows_of(path, **options):
    remarks = []
    return list(read_rows(path, remarks.append, **options)), remarks


def saved(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "kind", ["json", "jsonl", "json.gz", "jsonl.gz", "csv", "tsv", "parquet", "arrow", "stream", "xlsx"]
)
def test_every_kind_of_file_gives_the_same_rows(kind, tmp_path):
    path = tmp_path / f"rows.{'arrow' if kind == 'stream' else kind}"
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n"
    if kind.startswith("jsonl"):
        (gzip.open if kind.endswith("gz") else open)(path, "wb").write(text.encode())
    elif kind.startswith("json"):
        (gzip.open if kind.endswith("gz") else open)(path, "wb").write(json.dumps(ROWS).encode())
    elif kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        saved(path, f'instruction{mark}output\r\n分类{mark}投诉\r\nb{mark}"c\r\nd"\r\n')
    elif kind == "xlsx":
        openpyxl = pytest.importorskip("openpyxl")
        book = openpyxl.Workbook()
        book.active.append(["instruction", "output"])
        for row in ROWS:
            book.active.append(list(row.values()))
        book.save(path)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist(ROWS)
        if kind == "parquet":
            pq.write_table(table, path)
        else:
            make = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
            with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
                writer.write_table(table)
    rows, remarks = rows_of(path)
    assert [number for number, _ in rows] == [1, 2]
    assert [row for _, row in rows] == ROWS or kind == "xlsx"  # openpyxl writes \r\n as a line break of its own
    assert rows[0][1] == ROWS[0]
    assert remarks == []


def test_json_lines_and_lists_read_under_each_others_name(tmp_path):
    lines = saved(tmp_path / "a.json", '{"a": 1}\n\n{"a": 2}\n')
    assert rows_of(lines)[0] == [(1, {"a": 1}), (3, {"a": 2})]
    whole = saved(tmp_path / "b.jsonl", '\n [{"a": 1},\n{"a": 2}]')
    assert rows_of(whole)[0] == [(1, {"a": 1}), (2, {"a": 2})]
    one = saved(tmp_path / "c.json", '{"a":\n 1}')
    assert rows_of(one)[0] == [(1, {"a": 1})]


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "txt"])
def test_an_empty_file_has_no_rows(kind, tmp_path):
    for content in (b"", b"\n \n", b"\xef\xbb\xbf"):
        if kind == "csv" and content.strip() == b"":
            continue
        assert rows_of(saved(tmp_path / f"a.{kind}", content))[0] == []


def test_text_is_one_row_per_line_or_per_file(tmp_path):
    path = saved(tmp_path / "a.txt", "one \r\n\r\n二\nthree")
    assert rows_of(path)[0] == [(1, {"text": "one "}), (3, {"text": "二"}), (4, {"text": "three"})]
    assert rows_of(path, document="file")[0] == [(1, {"text": "one \n\n二\nthree"})]
    assert rows_of(saved(tmp_path / "b.txt", " \n"), document="file")[0] == []


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = saved(tmp_path / "a.csv", b"\xef\xbb\xbf" + "标题,回复\n问,答\n".encode())
    assert rows_of(path) == ([(1, {"标题": "问", "回复": "答"})], [])


@pytest.mark.parametrize("kind", ["csv", "txt", "jsonl", "json"])
def test_gb18030_is_read_and_told(kind, tmp_path):
    text = {"csv": f"a\n{CHINESE}", "txt": CHINESE}.get(kind, json.dumps({"a": CHINESE}, ensure_ascii=False) + "\n")
    rows, remarks = rows_of(saved(tmp_path / f"a.{kind}", text.encode("gb18030")))
    assert "打印机卡纸了" in next(iter(rows[0][1].values()))
    assert remarks == ["not UTF-8; read as GB18030"]
    whole = rows_of(saved(tmp_path / "b.txt", CHINESE.encode("gb18030")), document="file")
    assert whole == ([(1, {"text": CHINESE})], ["not UTF-8; read as GB18030"])


def test_utf16_with_its_mark_is_read_and_told(tmp_path):
    rows, remarks = rows_of(saved(tmp_path / "a.csv", "标题\n问\n".encode("utf-16")))
    assert rows == [(1, {"标题": "问"})]
    assert remarks == ["written in UTF-16; read as such"]


def test_a_late_gb18030_byte_is_found_past_the_first_piece(tmp_path):
    path = saved(tmp_path / "a.txt", b"plain line\n" * 200_000 + (CHINESE * 500).encode("gb18030"))
    assert detect(path) == ("gb18030", "not UTF-8; read as GB18030")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("好的\n坏的".encode() + b"\xff\n" + "好的\n".encode() * 50, 2),  # damaged UTF-8 is not guessed to be Chinese
        ("a\nb\ncafé naïve\n".encode("latin-1"), 3),
        (b"a\nb\n\x81\x20\n", 3),
        ((CHINESE + CHINESE).encode("gb18030") + b"\x81\x20\n", 3),
        ("字\n".encode("utf-16") + b"\x00\xd8b\x00", 2),
        (b"\xff\xfea\x00\x00\xd8b\x00", 1),
        (b"x" * (1 << 20) + "好\n".encode() * 9 + b"\xff", 10),
    ],
)
def test_another_encoding_is_an_error_with_its_line(content, line, tmp_path):
    with pytest.raises(RecipeError, match=rf"a\.txt: line {line}: n(ot|either) UTF-"):
        rows_of(saved(tmp_path / "a.txt", content))


def test_a_multi_byte_character_may_lie_across_two_pieces(tmp_path):
    text = "x" * ((1 << 20) - 1) + "好" * 10
    assert rows_of(saved(tmp_path / "a.txt", text))[0] == [(1, {"text": text})]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b'[{"a": 1},\n{"a": }]', "line 2, column 7: not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n{"a": 1,}\n', "line 2, column 9: not valid JSON"),
        ("a.json", b'{"a": 1}\n{"a": 1,}\n', "line 2, column 9: not valid JSON"),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "line 1: cannot be read as JSON"),
        ("a.json", b"[" * 100_000, "cannot be read as JSON"),
        ("a.jsonl", b'{"a": ' + b"[" * 100_000, "line 1: cannot be read as JSON"),
        ("a.csv", b"a,b\n1,2\n3\n", "line 3: 1 cells, the header has 2"),
        ("a.csv", b'a,b\n1,"2\n3,4\n', "not valid CSV"),
        ("a.csv", b"a,a\n1,2\n", "line 1: the column 'a' stands twice"),
        ("a.json.gz", b"no gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 100)[:-20], "cannot be read"),
        ("a.parquet", b"PAR1 no", "not a whole parquet file"),
        ("a.arrow", b"ARROW1 no", "not a whole arrow file"),
        ("a.arrow", b"no", "not a whole arrow file"),
        ("a.xlsx", b"no", "not a whole xlsx file"),
    ],
)
def test_a_broken_file_is_one_clear_message(name, content, words, tmp_path):
    if name.endswith("xlsx"):
        pytest.importorskip("openpyxl")
    with pytest.raises(RecipeError) as caught:
        rows_of(saved(tmp_path / name, content))
    assert words in str(caught.value)
    assert name in str(caught.value)


def test_a_huge_line_is_only_a_line(tmp_path):
    big = "长" * 3_000_000
    assert rows_of(saved(tmp_path / "a.jsonl", json.dumps({"a": big}) + "\n"))[0] == [(1, {"a": big})]
    assert rows_of(saved(tmp_path / "a.csv", f"a\n{big}\n"))[0] == [(1, {"a": big})]


def test_empty_cells_are_none_and_empty_lines_no_records(tmp_path):
    path = saved(tmp_path / "a.csv", "a,b\n\n1,\n,2\n")
    assert rows_of(path)[0] == [(1, {"a": "1", "b": None}), (2, {"a": None, "b": "2"})]


def test_a_folder_gives_its_shards_in_sorted_order(tmp_path):
    for name in ("b.jsonl", "a.csv", "c.json.gz", ".hidden.json", "README.md", "dataset_info.json", "_tmp.json"):
        saved(tmp_path / name, b"")
    assert [path.name for path in data_files(tmp_path)] == ["a.csv", "b.jsonl", "c.json.gz"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="no data file in this folder"):
        data_files(tmp_path / "empty")


def test_a_missing_file_comes_with_its_nearest_neighbour(tmp_path):
    saved(tmp_path / "train.jsonl", b"")
    with pytest.raises(RecipeError, match=r"trian\.jsonl: no such file\. Did you mean 'train\.jsonl'\?"):
        data_files(tmp_path / "trian.jsonl")
    with pytest.raises(RecipeError, match="no such file"):
        data_files(tmp_path / "nowhere" / "a.json")
    with pytest.raises(RecipeError, match="files of this kind"):
        data_files(saved(tmp_path / "a.doc", b""))


def test_the_kind_is_the_ending_before_gz(tmp_path):
    endings = {"a.JSON": "json", "a.b.csv.gz": "csv", "a": None, "a.gz": None, "a.txt": "txt"}
    assert {name: kind_of(tmp_path / name) for name in endings} == endings
