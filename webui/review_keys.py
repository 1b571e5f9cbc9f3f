"""The keys of the page Review, and what its buttons tell the board, as scripts of gradio's HTML parts."""

from __future__ import annotations

from llmforge.webui.markup import PICK

# What the page adds to an action: the row the reader saw, and the texts of the editor.
SEEN = "(place, author, seen) => [place, author, JSON.stringify(window.forgeReview())]"
KEYS = """
window.forgeReview = () => {
  const row = document.querySelector("#review-record [data-row]");
  const fields = {};
  for (const field of document.querySelectorAll("#review-record [data-field]"))
    fields[field.dataset.field] = field.value;
  return { row: row ? row.dataset.row : "", fields };
};
let busy = 0;  // a key that comes before the last decision is shown would decide about a row nobody saw
const press = (name, event) => {
  const button = document.getElementById("review-" + name);
  if (!button || button.offsetParent === null) return;
  event.preventDefault();
  if (Date.now() - busy < 3000) return;
  busy = name === "keys" ? 0 : Date.now();
  button.click();
};
const names = { j: "next", k: "previous", a: "accept", r: "reject", e: "edit", s: "skip", u: "undo", "?": "keys" };
if (window.forgeReviewKeys) document.removeEventListener("keydown", window.forgeReviewKeys);
window.forgeReviewKeys = (event) => {
  const typing = event.target.closest("input, textarea, select, [contenteditable=true]");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) return press("save", event);
  if (event.key === "Escape") { if (typing) typing.blur(); return press("back", event); }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    event.preventDefault();
    document.querySelector("#review-search textarea, #review-search input").focus();
  } else if (names[event.key.toLowerCase()]) press(names[event.key.toLowerCase()], event);
};
document.addEventListener("keydown", window.forgeReviewKeys);
watch("value", () => {
  busy = 0;
  const first = document.querySelector("#review-record [data-field]");
  if (first && !document.activeElement.closest("#review-record")) first.focus();
});
"""
SHOW_CURRENT = (
    PICK + "watch('value', () => { const now = document.querySelector('#review-list [aria-current]');"
    " if (now) now.scrollIntoView({ block: 'nearest' }); });"
)
