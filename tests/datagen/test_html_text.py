"""HTML becomes Markdown, and nothing else is touched."""

import pytest

from llmforge.datagen.html_text import is_html, to_text

PLAIN = [
    "List<int> and Map<String, List<T>> keep their brackets",
    "snake_case and a_b_c and 2*3*4 stay as they are",
    "if a < b and c > d: pass",
    "What does <div> do in HTML?",
    "Use <b>bold</b> sparingly.",
    "Use <br> here",
    "```html\n<p>x</p>\n```",
    "Write `<p>x</p>` in the page",
    "<s> marks the start, </s> the end",
    "<think>\nhm\n</think>\n\nyes",
    "<tool_call>{}</tool_call>",
    "- one\n- two\n\n| a | b |\n| --- | --- |\n| 1 | 2 |",
    "    indented\n\tcode",
]


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_is_left_alone(text):
    assert not is_html(text)
    assert to_text(text) == text


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<p>加我微信，包赢。</p>", "加我微信，包赢。"),
        ("可以&nbsp;申请<br>仲裁。", "可以 申请\n仲裁。"),
        ("<div><span>Use </span><code>snake_case_name</code></div>", "Use `snake_case_name`"),
        ("<p>Return List&lt;int&gt; here</p>", "Return List<int> here"),
        ("<p>Return List<int> here</p>", "Return List<int> here"),
        ("<p>one</p>\n<p>two <strong>bold</strong> <em>it</em></p>", "one\n\ntwo **bold** *it*"),
        ("<h2>Title</h2><p>text</p>", "## Title\n\ntext"),
        ("<p><a href='https://a.org/x'>link</a> <a href='javascript:1'>no</a></p>", "[link](https://a.org/x) no"),
        ("<ul><li>a<ul><li>b</li><li>c</li></ul></li><li>d</li></ul>", "- a\n   - b\n   - c\n- d"),
        ("<ol><li><p>a</p></li><li>b<ol><li>c</li></ol></li></ol>", "1. a\n2. b\n   1. c"),
        (
            "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>x|y</td></tr></tbody></table>",
            "| a | b |\n| --- | --- |\n| 1 | x\\|y |",
        ),
        (
            '<pre><div>python</div><code class="language-python">def f():\n    return a_b\n</code></pre>',
            "```python\ndef f():\n    return a_b\n```",
        ),
        (
            "<pre><div>pythonCopy code</div><code>def f():\n\n\n    return List&lt;int&gt;\n</code></pre>",
            "```python\ndef f():\n\n\n    return List<int>\n```",
        ),
        ("<pre>bashCopy code</pre><p>x</p>", "x"),
        ("<div><script>evil()</script><style>p {}</style>text</div>", "text"),
        ("<div>open <b>and never closed</div>", "open **and never closed"),
    ],
)
def test_html_becomes_markdown(html, expected):
    assert is_html(html)
    assert to_text(html) == expected


def test_markdown_of_html_is_not_html_again():
    made = to_text("<div><p>a</p><ul><li>b</li></ul></div>")
    assert to_text(made) == made
