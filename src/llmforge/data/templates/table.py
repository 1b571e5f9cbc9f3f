"""The templates a recipe may name, each with the place where its format is published; Chinese models in `table_zh`.

`LF` marks formats that were read in LLaMA-Factory's table. Where a model's own published code or chat template says
more, that is what stands here and in `source`.
"""

from __future__ import annotations

from dataclasses import replace

from llmforge.data.templates.template import Template
from llmforge.data.templates.thinking import Thinking

LF = "github.com/hiyouga/LLaMA-Factory, src/llamafactory/data/template.py of release 0.9.4"
SWIFT = "github.com/modelscope/ms-swift, swift/llm/utils/template.py of release 2"
FASTCHAT = "github.com/lm-sys/FastChat, fastchat/conversation.py"


def config_of(model: str) -> str:
    """The source of a format that a model's tokenizer configuration holds as its chat template."""
    return f"huggingface.co/{model}, tokenizer_config.json"


CHATML = Template(
    name="chatml",
    source="github.com/openai/openai-python, chatml.md of release 0.28",
    prompt="<|im_start|>user\n{content}<|im_end|>\n",
    suffix="<|im_end|>",
    separator="\n",
    system_prefix="<|im_start|>system\n{content}<|im_end|>\n",
    roles={"assistant": "<|im_start|>assistant\n", "tool": "<|im_start|>tool\n{content}<|im_end|>\n"},
    marks=("<|im_start|>", "<|im_end|>"),
)
QWEN = replace(
    CHATML,
    name="qwen",
    source=config_of("Qwen/Qwen2.5-7B-Instruct"),
    default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    # The results of one round of calls stand in one user turn.
    roles={
        "assistant": "<|im_start|>assistant\n",
        "tool": "<|im_start|>user{content}<|im_end|>\n",
        "tool_result": "\n<tool_response>\n{content}\n</tool_response>",
    },
    tool_syntax="qwen",
)
LLAMA2 = Template(
    name="llama2",
    source=config_of("meta-llama/Llama-2-7b-chat-hf"),
    prompt="{bos}[INST] {content} [/INST]",
    lead=" ",
    suffix=" {eos}",
    system_prefix="<<SYS>>\n{content}\n<</SYS>>\n\n",
    system_in="first",
    trim=True,
)
LLAMA3 = Template(
    name="llama3",
    source=config_of("meta-llama/Meta-Llama-3-8B-Instruct"),
    prefix="{bos}",
    prompt="<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>",
    suffix="<|eot_id|>",
    system_prefix="<|start_header_id|>system<|end_header_id|>\n\n{content}<|eot_id|>",
    roles={
        "assistant": "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "tool": "<|start_header_id|>ipython<|end_header_id|>\n\n{content}<|eot_id|>",
    },
    stop_words=("<|eom_id|>",),
    marks=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    trim=True,
    tool_syntax="llama3",
)
MISTRAL = Template(
    name="mistral",
    source=config_of("mistralai/Mistral-7B-Instruct-v0.3"),
    prefix="{bos}",
    prompt="[INST] {content}[/INST]",
    lead=" ",
    system_prefix="{content}\n\n",
    system_in="last",
    roles={"tool": '[TOOL_RESULTS] {"content": {content}}[/TOOL_RESULTS]'},
    tool_syntax="mistral",
)
# Gemma 1 and 2 know no system text; it opens the first user turn, as Gemma 3's own template has it.
GEMMA = Template(
    name="gemma",
    source=config_of("google/gemma-2-9b-it") + "; the system text as in gemma3",
    prefix="{bos}",
    prompt="<start_of_turn>user\n{content}<end_of_turn>\n",
    suffix="<end_of_turn>",
    separator="\n",
    system_prefix="{content}\n\n",
    system_in="first",
    roles={"assistant": "<start_of_turn>model\n"},
    marks=("<start_of_turn>", "<end_of_turn>"),
    trim=True,
)
PHI = Template(
    name="phi",
    source=config_of("microsoft/Phi-3-mini-4k-instruct"),
    prompt="<|user|>\n{content}<|end|>\n",
    suffix="<|end|>",
    separator="\n",
    system_prefix="<|system|>\n{content}<|end|>\n",
    roles={"assistant": "<|assistant|>\n"},
    marks=("<|user|>", "<|assistant|>", "<|end|>"),
)
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

GENERAL = [
    Template(
        name="default",
        source=LF + ", default",
        prompt="Human: {content}{eos}\n",
        separator="\n",
        system_prefix="System: {content}{eos}\n",
        roles={"assistant": "Assistant:"},
    ),
    Template(name="empty", source=LF + ", empty, with eos at the row's end", suffix="", eos_follows=True),
    Template(name="default_generation", source=SWIFT + ", default-generation"),
    Template(name="default_generation_bos", source=SWIFT + ", default-generation-bos", prefix="{bos}"),
    Template(name="fewshot", source=LF + ", fewshot", separator="\n\n", suffix="", eos_follows=True),
    Template(
        name="alpaca",
        source="github.com/tatsu-lab/stanford_alpaca, train.py; turns as in " + FASTCHAT + ", alpaca",
        prompt="### Instruction:\n{content}\n\n",
        separator="\n\n",
        default_system=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        ),
        system_prefix="{content}\n\n",
        roles={"assistant": "### Response:\n"},
    ),
    Template(
        name="vicuna",
        source=FASTCHAT + ", vicuna_v1.1",
        prefix="{bos}",
        prompt="USER: {content} ",
        lead=" ",
        default_system=VICUNA_SYSTEM,
        system_prefix="{content} ",
        roles={"assistant": "ASSISTANT:"},
    ),
    Template(
        name="bloom",
        source="BLOOM has no chat format; User and Bot as in ms-swift's and XTuner's default form, in plain text",
        prompt="User: {content}\n",
        lead=" ",
        separator="\n",
        system_prefix="{content}\n",
        roles={"assistant": "Bot:"},
    ),
    CHATML,
    replace(
        CHATML,
        name="chatml_de",
        source=LF + ", chatml_de",
        default_system="Du bist ein freundlicher und hilfsbereiter KI-Assistent.",
    ),
    LLAMA2,
    LLAMA3,
    replace(
        LLAMA3,
        name="openchat-3.6",
        source=LF + ", openchat-3.6",
        prompt="<|start_header_id|>GPT4 Correct User<|end_header_id|>\n\n{content}<|eot_id|>",
        system_prefix="{content}",
        roles={"assistant": "<|start_header_id|>GPT4 Correct Assistant<|end_header_id|>\n\n"},
        stop_words=(),
        tool_syntax="default",
    ),
    Template(
        name="llama4",
        source=LF + ", llama4",
        prefix="{bos}",
        prompt="<|header_start|>user<|header_end|>\n\n{content}<|eot|>",
        suffix="<|eot|>",
        system_prefix="<|header_start|>system<|header_end|>\n\n{content}<|eot|>",
        roles={
            "assistant": "<|header_start|>assistant<|header_end|>\n\n",
            "tool": "<|header_start|>ipython<|header_end|>\n\n{content}<|eot|>",
        },
        stop_words=("<|eom|>",),
        marks=("<|header_start|>", "<|header_end|>", "<|eot|>"),
        tool_syntax="llama3",
    ),
    MISTRAL,
    replace(
        MISTRAL,
        name="ministral",
        source=LF + ", ministral",
        prompt="[INST]{content}[/INST]",
        lead="",
        system_in="first",
        roles={"tool": '[TOOL_RESULTS]{"content": {content}}[/TOOL_RESULTS]'},
    ),
    replace(
        MISTRAL,
        name="mistral_small",
        source=LF + ", mistral_small",
        prompt="[INST]{content}[/INST]",
        lead="",
        system_in="turn",
        system_prefix="[SYSTEM_PROMPT]{content}[/SYSTEM_PROMPT]",
        roles={"tool": '[TOOL_RESULTS]{"content": {content}}[/TOOL_RESULTS]'},
    ),
    GEMMA,
    replace(GEMMA, name="gemma2"),
    replace(GEMMA, name="gemma3", source=config_of("google/gemma-3-4b-it")),
    PHI,
    replace(PHI, name="phi_small", source=LF + ", phi_small", prefix="<|endoftext|>"),
    Template(
        name="phi4",
        source=config_of("microsoft/phi-4"),
        prompt="<|im_start|>user<|im_sep|>{content}<|im_end|>",
        suffix="<|im_end|>",
        system_prefix="<|im_start|>system<|im_sep|>{content}<|im_end|>",
        roles={"assistant": "<|im_start|>assistant<|im_sep|>"},
        marks=("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    ),
    replace(CHATML, name="smollm", source=config_of("HuggingFaceTB/SmolLM-135M-Instruct")),
    replace(
        CHATML,
        name="smollm2",
        source=config_of("HuggingFaceTB/SmolLM2-135M-Instruct"),
        default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    ),
    Template(
        name="zephyr",
        source="huggingface.co/HuggingFaceH4/zephyr-7b-beta, model card",
        prompt="<|user|>\n{content}{eos}\n",
        separator="\n",
        system_prefix="<|system|>\n{content}{eos}\n",
        roles={"assistant": "<|assistant|>\n"},
    ),
    Template(
        name="starchat",
        source="github.com/bigcode-project/starcoder, chat/dialogues.py",
        prompt="<|user|>\n{content}<|end|>\n",
        lead="\n",
        suffix="<|end|>",
        separator="\n",
        default_system="",
        system_prefix="<|system|>\n{content}<|end|>\n",
        roles={"assistant": "<|assistant|>"},
        marks=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    Template(
        name="openchat",
        source=config_of("openchat/openchat_3.5"),
        prefix="{bos}",
        prompt="GPT4 Correct User: {content}<|end_of_turn|>",
        lead=" ",
        suffix="<|end_of_turn|>",
        system_prefix="GPT4 Correct System: {content}<|end_of_turn|>",
        roles={"assistant": "GPT4 Correct Assistant:"},
        marks=("<|end_of_turn|>",),
    ),
    Template(
        name="solar",
        source=config_of("upstage/SOLAR-10.7B-Instruct-v1.0"),
        prompt="### User:\n{content}\n\n",
        suffix="",
        system_prefix="### System:\n{content}\n\n",
        roles={"assistant": "### Assistant:\n"},
        eos_follows=True,
    ),
    Template(
        name="falcon",
        source=config_of("tiiuae/falcon-7b-instruct"),
        prompt="User: {content}\n",
        lead=" ",
        suffix="",
        separator="\n",
        system_prefix="System: {content}\n",
        roles={"assistant": "Falcon:"},
        eos_follows=True,
    ),
    replace(CHATML, name="falcon_h1", source=LF + ", falcon_h1", prefix="{bos}", stop_words=("<|end_of_text|>",)),
    Template(
        name="granite3",
        source=config_of("ibm-granite/granite-3.0-8b-instruct"),
        prompt="<|start_of_role|>user<|end_of_role|>{content}<|end_of_text|>\n",
        suffix="<|end_of_text|>",
        separator="\n",
        system_prefix="<|start_of_role|>system<|end_of_role|>{content}<|end_of_text|>\n",
        roles={
            "assistant": "<|start_of_role|>assistant<|end_of_role|>",
            "tool": "<|start_of_role|>tool_response<|end_of_role|>{content}<|end_of_text|>\n",
        },
        marks=("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
    ),
    Template(
        name="cohere",
        source=config_of("CohereForAI/c4ai-command-r-v01"),
        prefix="{bos}",
        prompt="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{content}<|END_OF_TURN_TOKEN|>",
        suffix="<|END_OF_TURN_TOKEN|>",
        system_prefix="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{content}<|END_OF_TURN_TOKEN|>",
        roles={"assistant": "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"},
        marks=("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        trim=True,
    ),
    Template(
        name="exaone",
        source=config_of("LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct"),
        prompt="[|user|]{content}\n",
        suffix="[|endofturn|]",
        separator="\n",
        default_system="",
        system_prefix="[|system|]{content}[|endofturn|]\n",
        roles={"assistant": "[|assistant|]"},
        marks=("[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]"),
    ),
    Template(
        name="olmo",
        source=config_of("allenai/OLMo-7B-Instruct-hf"),
        prefix="{eos}",
        prompt="<|user|>\n{content}\n",
        separator="\n",
        roles={"assistant": "<|assistant|>\n"},
    ),
    replace(
        CHATML,
        name="opencoder",
        source=LF + ", opencoder",
        default_system="You are OpenCoder, created by OpenCoder Team.",
    ),
    replace(
        CHATML,
        name="sailor",
        source=LF + ", sailor",
        prompt="<|im_start|>question\n{content}<|im_end|>\n",
        default_system=(
            "You are an AI assistant named Sailor created by Sea AI Lab. "
            "Your answer should be friendly, unbiased, faithful, informative and detailed."
        ),
        roles={"assistant": "<|im_start|>answer\n"},
    ),
    Template(
        name="breeze",
        source="huggingface.co/MediaTek-Research/Breeze-7B-Instruct-v1_0, model card",
        prefix="{bos}",
        prompt="[INST] {content} [/INST]",
        lead=" ",
        separator=" ",
        suffix="",
        system_prefix="{content} ",
        eos_follows=True,
    ),
]
QWEN_FAMILY = [
    QWEN,
    # The think block, the history without it and the missing default system are Qwen3's own.
    replace(
        QWEN,
        name="qwen3",
        source=config_of("Qwen/Qwen3-8B"),
        default_system=None,
        thinking=Thinking(),
    ),
    replace(QWEN, name="qwen3_nothink", source=config_of("Qwen/Qwen3-4B-Instruct-2507"), default_system=None),
]
