"""HTML back to Markdown, only where a text is HTML: `List<int>` and `snake_case` in plain text stay as they are.

FastChat's cleaner parses and escapes everything, which eats `<int>` and writes `snake\\_case`; so a text is looked at
first, code in it left alone, and nothing is ever escaped.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

BLOCKS = {
    "p", "div", "ul", "ol", "table", "pre", "blockquote", "section", "article", "h1", "h2", "h3", "h4", "h5", "h6",
}  # fmt: skip
INLINE = {"span", "b", "strong", "i", "em", "a", "code", "font", "u", "sup", "sub"}
MARKS = {"b": "**", "strong": "**", "i": "*", "em": "*"}
SILENT = {
    "html",
    "body",
    "main",
    "br",
    "hr",
    "img",
    "tbody",
    "thead",
    "tfoot",
    "colgroup",
    "col",
    "label",
    "small",
    "s",
    "del",
}
TABLE = {"table", "tr", "td", "th", "li"}
HIDDEN = {"script", "style", "head", "template", "svg", "button"}
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
KNOWN = BLOCKS | INLINE | SILENT | TABLE | HIDDEN
TAG = re.compile(r"</?([a-zA-Z][a-zA-Z0-9]*)(?:\s[^<>]*)?/?>")
GLUED_BREAK = re.compile(r"[^\s\"'`(<]<br\s*/?>", re.IGNORECASE)
ENTITY_SPACE = re.compile(r"&nbsp;|&#160;")


def is_html(text: str) -> bool:
    """Whether a text was cut out of a web page, judged by its tags outside of code.

    It is when a block such as <p> opens and closes, when the text begins with a tag such as <span> that closes, or
    when <br> hangs on a word. A single tag in a sentence is something the sentence talks about.
    """
    if "<" not in text:
        return False
    bare = CODE.sub(" ", text)
    opened = {m[1].lower() for m in TAG.finditer(bare) if not m[0].startswith("</")}
    closed = {m[1].lower() for m in TAG.finditer(bare) if m[0].startswith("</")}
    both = opened & closed
    first = TAG.match(bare.lstrip())
    starts = bool(first and first[1].lower() in both | {"br"})
    return bool(
        (starts and both & (BLOCKS | INLINE | {"html", "body"}))
        or (both & BLOCKS and re.search(r"<(?:p|div|ul|ol|table|pre|blockquote|h[1-6])[\s>][^`]*</", bare, re.I))
        or GLUED_BREAK.search(bare)
    )


def to_text(text: str) -> str:
    """The text itself, or when it is HTML its Markdown; a text whose only trace of HTML is &nbsp; gets blanks."""
    if is_html(text):
        return markdown(text)
    return ENTITY_SPACE.sub(" ", text) if ENTITY_SPACE.search(CODE.sub(" ", text)) else text


def markdown(text: str) -> str:
    """Markdown of HTML: headings, lists, tables, links, emphasis; code keeps its indent, wrappers vanish."""
    parser = _Markdown()
    parser.feed(text)
    parser.close()
    return parser.finished()


class _Markdown(HTMLParser):
    """Walks through the tags once; `out` is what was written, `lists` the open lists with their counters."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        self.lists: list[int | None] = []  # None for bullets, else the last number
        self.pre = 0
        self.hidden = 0
        self.code_start = 0
        self.language = ""
        self.links: list[tuple[int, str]] = []
        self.rows: list[list[str]] | None = None
        self.cell_start: int | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag not in KNOWN:  # the <int> of an unescaped List<int>
            self.out.append(self.get_starttag_text() or "")
        elif tag in HIDDEN:
            self.hidden += 1
        elif self.pre:
            if tag == "code":
                self._open_code(given.get("class", ""))
            elif tag == "br":
                self.out.append("\n")
        elif tag == "pre":
            self._break(2)
            self.pre, self.code_start, self.language = 1, len(self.out), ""
        elif tag in ("ul", "ol"):
            self._break(1 if self.lists else 2)
            self.lists.append(
                None if tag == "ul" else int(given["start"]) - 1 if given.get("start", "").isdigit() else 0
            )
        elif tag == "li":
            self._break(1)
            self.out.append(self._bullet())
        elif tag == "br":
            self.out.append("<br>" if self.cell_start is not None else "\n")
        elif tag == "hr":
            self._break(2)
            self.out.append("---")
            self._break(2)
        elif tag == "table":
            self._break(2)
            self.rows = []
        elif tag == "tr" and self.rows is not None:
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.cell_start = len(self.out)
        elif tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self._break(2)
            self.out.append("#" * int(tag[1]) + " ")
        elif tag in ("p", "div", "blockquote", "section", "article"):
            if not (self.out and re.fullmatch(r"\s*(?:[-*]|\d+\.) ", self.out[-1])):  # <li><p> is one line
                self._break(2)
            if tag == "blockquote":
                self.out.append("> ")
        elif tag == "code":
            self.out.append("`")
        elif tag in MARKS:
            self.out.append(MARKS[tag])
        elif tag == "a":
            self.links.append((len(self.out), given.get("href", "")))
        elif tag == "img" and given.get("alt"):
            self.out.append(given["alt"])

    def handle_endtag(self, tag: str) -> None:
        if tag not in KNOWN:
            self.out.append(f"</{tag}>")
        elif tag in HIDDEN:
            self.hidden = max(0, self.hidden - 1)
        elif tag == "pre" and self.pre:
            self._close_code()
        elif self.pre:
            return
        elif tag in ("ul", "ol") and self.lists:
            self.lists.pop()
            self._break(1 if self.lists else 2)
        elif tag in ("td", "th") and self.rows and self.cell_start is not None:
            cell = "".join(self.out[self.cell_start :]).strip().replace("\n", " ").replace("|", r"\|")
            del self.out[self.cell_start :]
            self.rows[-1].append(re.sub(r"(?:<br>|\s)+$", "", cell))
            self.cell_start = None
        elif tag == "table" and self.rows is not None:
            self._close_table()
        elif tag in ("p", "div", "blockquote", "section", "article", "h1", "h2", "h3", "h4", "h5", "h6"):
            self._break(1 if self.lists else 2)
        elif tag == "code":
            self.out.append("`")
        elif tag in MARKS:
            self.out.append(MARKS[tag])
        elif tag == "a" and self.links:
            start, href = self.links.pop()
            words = "".join(self.out[start:])
            self.out[start:] = [f"[{words}]({href})" if href.startswith("http") and words != href else words]

    def handle_data(self, data: str) -> None:
        if self.hidden:
            return
        if not self.pre:
            data = re.sub(r"[ \t\r\n\f]+", " ", data)
            if data == " " and (not self.out or self.out[-1].endswith(("\n", " "))):
                return
            if self.out and self.out[-1].endswith("\n"):
                data = data.lstrip(" ")
        self.out.append(data.replace("\xa0", " "))

    def unknown_decl(self, data: str) -> None:
        """<![CDATA[...]]> and the like are no text."""

    def finished(self) -> str:
        """The text with at most one empty line between blocks; lines in code as they are."""
        if self.pre:
            self._close_code()
        if self.rows is not None:
            self._close_table()
        text = "".join(self.out)
        parts = re.split(r"(```.*?\n```)", text, flags=re.DOTALL)
        for i in range(0, len(parts), 2):
            parts[i] = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", parts[i]))
        return "".join(parts).strip()

    def _bullet(self) -> str:
        indent = "   " * (len(self.lists) - 1)
        if not self.lists or self.lists[-1] is None:
            return f"{indent}- "
        self.lists[-1] += 1
        return f"{indent}{self.lists[-1]}. "

    def _break(self, lines: int) -> None:
        """At least `lines` line ends after what was written."""
        if self.cell_start is not None or not self.out:
            return
        tail = "".join(self.out[-3:])
        there = len(tail) - len(tail.rstrip("\n"))
        self.out.append("\n" * max(0, lines - there))

    def _open_code(self, classes: str) -> None:
        """<code> inside <pre>: its language is in its class, or is the word the page showed above it."""
        above = "".join(self.out[self.code_start :])
        if label := re.fullmatch(r"\s*([\w+#-]*?)(?:Copy code)*\s*", above):
            self.language = label[1]
            del self.out[self.code_start :]
        if found := re.search(r"language-([\w+#-]+)", classes):
            self.language = found[1]

    def _close_code(self) -> None:
        code = "".join(self.out[self.code_start :])
        del self.out[self.code_start :]
        if found := re.match(r"\s*([\w+#-]*?)(?:Copy code)+", code):  # the button of the page it was copied from
            self.language, code = self.language or found[1], code[found.end() :]
        self.pre = 0
        if code.strip():
            self.out.append(f"```{self.language}\n{code.strip(chr(10)).rstrip()}\n```")
            self._break(2)

    def _close_table(self) -> None:
        rows = [row for row in self.rows or [] if row]
        self.rows, self.cell_start = None, None
        if rows:
            width = max(map(len, rows))
            lines = [f"| {' | '.join(row + [''] * (width - len(row)))} |" for row in rows]
            self.out.append("\n".join([lines[0], "|" + " --- |" * width, *lines[1:]]))
            self._break(2)
