"""The templates a recipe may name, each with the place where its format is published."""

from __future__ import annotations

from llmforge.data.templates.template import Template

CHATML = {
    "prompt": "<|im_start|>user\n{content}<|im_end|>\n",
    "suffix": "<|im_end|>",
    "separator": "\n",
    "system_prefix": "<|im_start|>system\n{content}<|im_end|>\n",
    "roles": {"assistant": "<|im_start|>assistant\n", "tool": "<|im_start|>tool\n{content}<|im_end|>\n"},
    "marks": ("<|im_start|>", "<|im_end|>"),
}
# Qwen puts the results of one round of calls into one user turn.
QWEN_ROLES = {
    "assistant": "<|im_start|>assistant\n",
    "tool": "<|im_start|>user{content}<|im_end|>\n",
    "tool_result": "\n<tool_response>\n{content}\n</tool_response>",
}

LIST = [
    Template(name="chatml", source="github.com/openai/openai-python, chatml.md (release v0.28)", **CHATML),
    Template(
        name="qwen",
        source="huggingface.co/Qwen/Qwen2.5-7B-Instruct, tokenizer_config.json",
        **{**CHATML, "roles": QWEN_ROLES},
        default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        tool_syntax="qwen",
    ),
    Template(
        name="smollm2",
        source="huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, tokenizer_config.json",
        **CHATML,
        default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    ),
    # ids 195 and 196 are the two turn marks of the model's own code. It has no system mark: the system text opens the
    # row. A reply is ended by the next turn's mark, whose label is eos; eos itself stands at the very end only.
    Template(
        name="baichuan2",
        source="github.com/baichuan-inc/Baichuan2, fine-tune/fine-tune.py; the model's generation_utils.py",
        prompt="<reserved_106>{content}",
        roles={"assistant": "<reserved_107>"},
        suffix="",
        marks=("<reserved_106>", "<reserved_107>"),
        eos_follows=True,
    ),
    Template(
        name="baichuan2_eos",
        source="the turn marks of baichuan2, with eos after each reply as most other formats have it",
        prompt="<reserved_106>{content}",
        roles={"assistant": "<reserved_107>"},
        marks=("<reserved_106>", "<reserved_107>"),
    ),
]
TABLE = {template.name: template for template in LIST}
