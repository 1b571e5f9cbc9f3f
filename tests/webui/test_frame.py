"""What every page stands on: words in two languages, paths that stay inside, a guard, one way to tell of trouble."""

import base64
import string

import pytest

from llmforge.errors import RecipeError
from llmforge.webui.amounts import many
from llmforge.webui.board import Board, safe_join
from llmforge.webui.guard import Guard, check_bind
from llmforge.webui.markup import Safe, tag
from llmforge.webui.problem import Trouble, mask, show_trouble
from llmforge.webui.sending import translate
from llmforge.webui.uploads import clean_name, take_upload
from llmforge.webui.words import Words, language_of, texts


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_have_the_same_texts_with_the_same_values_in_them():
    english, chinese = texts("en"), texts("zh")
    assert english.keys() == chinese.keys()
    assert [key for key in english if fields(english[key]) != fields(chinese[key])] == []


@pytest.mark.parametrize("key", sorted(texts("zh")))
def test_chinese_texts_hold_no_english_words_and_english_ones_no_chinese(key):
    if key.startswith("common.language"):  # the switch is named in the other language
        return
    assert not any("\u4e00" <= letter <= "\u9fff" for letter in texts("en")[key])


def test_one_of_something_has_its_own_words_and_thousands_are_marked():
    words = Words("en")
    assert words("train.rows", n=1) == "1 row"
    assert words("train.rows", n=12345) == "12,345 rows"
    assert Words("zh")("train.rows", n=1) == "1 条"


def test_large_numbers_are_told_as_each_language_counts():
    assert many(Words("en"), 134_515_008) == "135 million"
    assert many(Words("zh"), 134_515_008) == "1.35 亿"
    assert many(Words("en"), 7_615_616_512) == "7.62 billion"
    assert many(Words("zh"), 1_600_000) == "160 万"
    assert many(Words("en"), 999_600_000) == "1000 million"
    assert many(Words("zh"), 42) == "42"


def test_the_choice_made_on_the_board_wins_over_the_browsers_language():
    assert language_of({"accept-language": "zh-CN,en;q=0.5"}) == "zh"
    assert language_of({"accept-language": "fr,zh;q=0.5"}) == "en"
    assert language_of({"accept-language": "zh", "cookie": "a=b; forge_language=en"}) == "en"
    assert language_of({"accept-language": "zh", "cookie": "forge_language=<script>"}) == "zh"


def test_a_page_is_translated_before_it_is_sent():
    marked = r"__i18n__{\"__type__\": \"translation_metadata\", \"key\": \"common.runs\"}"
    page = f'<html lang="en"><head><meta property="og:url" content="x"/></head>"{marked} and {marked}"'
    assert translate(page, "zh", "<i>") == '<html lang="zh-CN"><head><i></head>"任务 and 任务"'
    assert translate('{"__type__":"translation_metadata","key":"common.runs"}', "en", "") == '"Runs"'


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../out", "link/x", "a\0b"])
def test_no_path_leads_out_of_the_project(tmp_path, name):
    root = tmp_path / "project"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(RecipeError):
        safe_join(root, name)


def test_paths_inside_the_project_are_taken_relative_and_absolute(tmp_path):
    board = Board(tmp_path)
    assert board.path("runs/燕尾 1") == tmp_path / "runs/燕尾 1"
    assert board.path(str(tmp_path / "data")) == tmp_path / "data"
    assert board.shown(tmp_path / "runs/a") == "runs/a"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("rows.jsonl", "rows.jsonl"), ("../../etc/passwd", "passwd"), ("C:\\x\\我的 数据.csv", "我的_数据.csv"),
     (".bashrc", "bashrc"), ("a<img src=x>.json", "a_img_src_x_.json")],
)  # fmt: skip
def test_names_of_uploads_are_cleaned(sent, kept):
    assert clean_name(sent) == kept


def test_an_upload_lands_in_quarantine_and_only_tables_are_taken(tmp_path):
    board = Board(tmp_path / "project")
    (sent := tmp_path / "rows.jsonl").write_text("{}\n")
    kept = take_upload(board, str(sent))
    assert kept.is_relative_to(board.uploads)
    assert not sent.exists()
    (script := tmp_path / "x.sh").write_text("echo")
    with pytest.raises(RecipeError, match="expected a file ending in"):
        take_upload(board, str(script))
    assert not script.exists()


async def ask(guard: Guard, **headers: str) -> int:
    sent = []

    async def send(message):
        sent.append(message)

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await guard({"type": "http", "headers": pairs}, None, send)
    return sent[0]["status"]


async def page(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:7860"}, 200),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "127.0.0.1:7860", "origin": "http://evil.example"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "null"}, 403),
        ({"host": "127.0.0.1:7860", "sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}, 403),
        ({"host": "127.0.0.1:7860", "sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, 200),
        ({"host": "evil.example:7860"}, 403),  # a foreign name pointed at this machine
    ],
    ids=str,
)
def test_only_pages_of_the_board_itself_are_answered(headers, status):
    import asyncio

    assert asyncio.run(ask(Guard(page, None), **headers)) == status


def test_a_password_is_asked_for_and_compared_whole():
    import asyncio

    def with_password(text: str) -> int:
        given = base64.b64encode(f"me:{text}".encode()).decode()
        return asyncio.run(ask(Guard(page, "open:sesame"), host="board.example", authorization=f"Basic {given}"))

    assert with_password("open:sesame") == 200
    assert with_password("open") == 401
    assert asyncio.run(ask(Guard(page, "open:sesame"), host="board.example")) == 401
    assert asyncio.run(ask(Guard(page, "x"), host="board.example", authorization="Basic ***")) == 401


def test_addresses_that_others_reach_need_a_password():
    check_bind("127.0.0.1", None)
    check_bind("::1", None)
    check_bind("0.0.0.0", "secret")
    for host in ("0.0.0.0", "::", "192.168.1.5"):
        with pytest.raises(RecipeError, match="needs a password"):
            check_bind(host, None)


def test_what_is_not_ours_is_escaped():
    assert tag("p", "<img onerror=x>", title='"a') == '<p title="&quot;a">&lt;img onerror=x&gt;</p>'
    assert tag("p", Safe("<b>"), None, ["x", "&"]) == "<p><b>x&amp;</p>"


def test_a_report_holds_no_secret(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "very-secret-value")
    text = mask("api_key: abc123\nAuthorization: Bearer x1y2z3w4\nhf_abcdefgh very-secret-value /tmp/x")
    assert "abc123" not in text
    assert "x1y2z3w4" not in text
    assert "hf_abcdefgh" not in text
    assert "very-secret-value" not in text
    assert "/tmp/x" in text
    shown = show_trouble(Words("zh"), Trouble("<b>坏了", "token=hf_abcdefgh", "重来"))
    assert "<b>" not in shown
    assert "hf_abcdefgh" not in shown
    assert "复制报告" in shown
    assert Trouble("row 17 is bad").code == Trouble("row 4 is bad").code
