"""The table of runs: state, recipe in short, numbers; a box to compare it, a name to open it."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence

from llmforge.webui.amounts import ago, duration, number, size
from llmforge.webui.index import RunRow
from llmforge.webui.markup import Safe, tag
from llmforge.webui.words import Words

MOST_ROWS = 200  # further ones are found by searching
# Clicks and keys inside the table, told to Python. The address names the open run; ticks and the focus stay with their
# runs when rows come or go.
SCRIPT = """
let last = null;
element.addEventListener('click', (event) => {
  const open = event.target.closest('[data-run]');
  if (!open) return;
  trigger('select', { run: open.dataset.run });
  history.replaceState(null, '', `${location.pathname}?run=${encodeURIComponent(open.dataset.run)}`);
});
element.addEventListener('change', (event) => {
  const tick = event.target.dataset.tick;
  if (tick !== undefined) trigger('input', { run: tick, on: event.target.checked });
});
element.addEventListener('focusin', (event) => { last = event.target.dataset.key || null; });
element.addEventListener('focusout', () => { last = null; });
element.addEventListener('keydown', (event) => {
  if (event.key !== 'ArrowDown' && event.key !== 'ArrowUp') return;
  const all = [...element.querySelectorAll('[data-run]')], at = all.indexOf(document.activeElement);
  const next = all[at + (event.key === 'ArrowDown' ? 1 : -1)];
  if (at >= 0 && next) { event.preventDefault(); next.focus(); }
});
watch('value', () => {
  element.querySelectorAll('[data-tick]').forEach((box) => { box.checked = box.hasAttribute('checked'); });
  const key = last, focused = document.activeElement;
  if (!key || focused.dataset.key === key) return;
  const again = element.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (again) again.focus({ preventScroll: true });
});
"""


def matches(row: RunRow, search: str) -> bool:
    """Whether every word of the search is in what the table shows of the run."""
    text = " ".join((row.name, row.state, row.stage, row.method, row.model, row.data)).lower()
    return all(word in text for word in search.lower().split())


def runs_table(words: Words, rows: Sequence[RunRow], opened: str, ticked: Collection[str], search: str) -> Safe:
    """The rows that match, or a sentence that says what to do next."""
    if not rows:
        start = tag("a", words("runs.start_first"), href="train", class_="button primary")
        return tag("div", tag("p", words("runs.none")), start, class_="empty-state")
    found = [row for row in rows if matches(row, search)]
    names = ("compare", "name", "state", "progress", "loss", "eval", "recipe", "started", "took", "size")
    head = [tag("th", words(f"runs.col.{name}"), scope="col", class_=f"col-{name}") for name in names]
    body = [_row(words, row, opened, row.name in ticked) for row in found[:MOST_ROWS]]
    more = len(found) - MOST_ROWS
    return tag(
        "div",
        tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body), class_="runs-table"),
        tag("p", words("runs.no_match"), class_="calm") if not found else None,
        tag("p", words("runs.more_rows", n=more), class_="calm") if more > 0 else None,
        class_="scroll",
        role="region",
        tabindex="0",
        aria_label=words("runs.table"),
    )


def _row(words: Words, row: RunRow, opened: str, ticked: bool) -> Safe:
    here = row.name == opened
    tick = Safe(
        f'<input type="checkbox" data-tick="{html.escape(row.name)}" data-key="tick:{html.escape(row.name)}" '
        f'aria-label="{html.escape(words("runs.compare_one", name=row.name))}"{" checked" * ticked}>'
    )
    name = tag(
        "button", row.name, type="button", class_="open", data_run=row.name, data_key=f"open:{row.name}",
        aria_pressed="true" if here else "false",
    )  # fmt: skip
    progress = f"{row.step:,} / {row.total_steps:,}" if row.total_steps else "-"
    cells = {
        "compare": tick,
        "name": name,
        "state": badge(words, row),
        "progress": progress,
        "loss": number(row.loss),
        "eval": number(row.best_eval),
        "recipe": tag("span", f"{row.stage} · {row.method}", tag("small", row.data, class_="calm"), class_="two"),
        "started": ago(words, row.started),
        "took": duration(words, row.took) if row.took and row.state != "queued" else "-",
        "size": size(row.size) if row.size else "-",
    }
    return tag(
        "tr", *(tag("td", cell, class_=f"col-{key}") for key, cell in cells.items()), class_="here" if here else None
    )


def badge(words: Words, row: RunRow) -> Safe:
    """The state as a word with a sign; yellow when there is no sign of life."""
    if row.silent_s is not None:
        told = words("runs.silent", time=duration(words, row.silent_s))
        return tag("span", f"{words(f'runs.state.{row.state}')} · {told}", class_="badge silent")
    return tag("span", words(f"runs.state.{row.state}"), class_=f"badge {row.state}")
