"""The table in docs/templates.md: `python -m llmforge.data.templates.page docs/templates.md` writes it anew."""

from __future__ import annotations

import sys
from pathlib import Path

from llmforge.data.templates.find import TEMPLATES
from llmforge.data.templates.template import Template

HEADING = "## Names\n"


def with_table(page: str) -> str:
    """The page with everything behind its last heading made from the table of templates."""
    prose, _, _ = page.partition(HEADING)
    rows = [_row(TEMPLATES.get(name)) for name in sorted(TEMPLATES)]
    return (
        f'{prose}{HEADING}{len(rows)} templates. "Prompt" is what a first question U becomes, `⏎` a line break.\n\n'
        "| name | prompt | tools | source |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _row(template: Template) -> str:
    prompt = template.prompt.replace("{content}", "U") if "{content}" in template.prompt else template.prompt + "U"
    asked = template.prefix + prompt.replace("{round}", "1") + template.roles.get("assistant", "")
    shown = asked.replace("\n", "⏎").replace("|", "\\|").replace("`", "'")
    thinks = " (think block)" if template.thinking else ""
    return f"| `{template.name}`{thinks} | `{shown}` | {template.tool_syntax or '-'} | {template.source} |"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
