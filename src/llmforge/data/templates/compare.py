"""A named template beside the chat template that the tokenizer brings: where do they part?"""

from __future__ import annotations

from collections.abc import Sequence

from llmforge.data.example import Message
from llmforge.data.templates.own import own_template
from llmforge.data.templates.template import Template
from llmforge.data.tokenizer import Tokenizer
from llmforge.errors import RecipeError

USER, ASSISTANT = Message("user", "1 + 1 = ?"), Message("assistant", "2")
PROBES: dict[str, tuple[Message, ...]] = {
    "one question": (USER,),
    "a system text": (Message("system", "Be brief."), USER),
    "two turns": (USER, ASSISTANT, USER),
}
AROUND = 24  # characters of text shown on each side of the difference


def compare_with_own(template: Template, tokenizer: Tokenizer) -> str | None:
    """Render fixed prompts both ways; the first differing token with both texts, None when the two agree.

    Also None for a tokenizer without a chat template. A chat template that cannot be rendered is named as such.
    """
    if not tokenizer.chat_template:
        return None
    own = own_template(tokenizer)
    for what, messages in PROBES.items():
        try:
            theirs = own.encode(tokenizer, messages, add_generation_prompt=True).input_ids
        except RecipeError as error:
            return f"the tokenizer's own chat template cannot render {what}: {error}"
        ours = template.encode(tokenizer, messages, add_generation_prompt=True).input_ids
        if ours != theirs:
            parting = _parting(ours, theirs, tokenizer)
            return f"template {template.name!r} differs from the tokenizer's own for {what}: {parting}"
    return None


def _parting(ours: Sequence[int], theirs: Sequence[int], tokenizer: Tokenizer) -> str:
    """The first differing token and the text around it, in both."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    before = tokenizer.decode(ours[:at])[-AROUND:]
    shown = []
    for ids in (ours, theirs):
        token = f"{tokenizer.token(ids[at])!r} (id {ids[at]})" if at < len(ids) else "nothing"
        shown.append(f"{token} in {before + '⟦' + tokenizer.decode(ids[at:])[:AROUND] + '⟧'!r}")
    return f"token {at} is {shown[0]}, the tokenizer's own has {shown[1]}"
