"""Templates of models from China, those that LLaMA-Factory dropped after release 0.9.4 among them."""

from __future__ import annotations

from dataclasses import replace

from llmforge.data.templates.table import CHATML, LF, LLAMA2, LLAMA3, QWEN, config_of
from llmforge.data.templates.template import Template
from llmforge.data.templates.thinking import Thinking

# Ids 195 and 196 are the two turn marks of the model's own code. It has no system mark: the system text opens the row.
# A reply is ended by the next turn's mark, whose label is eos; eos itself stands at the very end only.
BAICHUAN2 = Template(
    name="baichuan2",
    source="github.com/baichuan-inc/Baichuan2, fine-tune/fine-tune.py; generation_utils.py of Baichuan2-7B-Chat",
    prompt="<reserved_106>{content}",
    suffix="",
    roles={"assistant": "<reserved_107>"},
    marks=("<reserved_106>", "<reserved_107>"),
    eos_follows=True,
)
# A reply ends where the model names the next speaker; in training the label there is eos, which closes the row.
GLM4 = Template(
    name="glm4",
    source=config_of("THUDM/glm-4-9b-chat"),
    prefix="[gMASK]<sop>",
    prompt="<|user|>\n{content}",
    lead="\n",
    suffix="",
    system_prefix="<|system|>\n{content}",
    roles={"assistant": "<|assistant|>", "tool": "<|observation|>\n{content}"},
    stop_words=("<|user|>", "<|observation|>"),
    marks=("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    eos_follows=True,
    tool_syntax="glm4",
)
DEEPSEEK3 = Template(
    name="deepseek3",
    source=config_of("deepseek-ai/DeepSeek-V3"),
    prefix="{bos}",
    prompt="<｜User｜>{content}",
    roles={"assistant": "<｜Assistant｜>"},
    marks=("<｜User｜>", "<｜Assistant｜>"),
)
INTERN_SYSTEM = (
    "You are an AI assistant whose name is InternLM (书生·浦语).\n"
    "- InternLM (书生·浦语) is a conversational language model that is developed by Shanghai AI Laboratory "
    "(上海人工智能实验室). It is designed to be helpful, honest, and harmless.\n"
    "- InternLM (书生·浦语) can understand and communicate fluently in the language chosen by the user such as English "
    "and 中文."
)
INTERN = Template(
    name="intern",
    source="huggingface.co/internlm/internlm-chat-7b, modeling_internlm.py, build_inputs",
    prefix="{bos}",
    prompt="<|User|>:{content}\n",
    suffix="<eoa>",
    separator="\n",
    default_system=INTERN_SYSTEM,
    system_prefix="<|System|>:{content}\n",
    roles={"assistant": "<|Bot|>:"},
    marks=("<eoa>",),
)

CHINESE = [
    BAICHUAN2,
    replace(
        BAICHUAN2,
        name="baichuan2_eos",
        source="baichuan2, with eos after each reply",
        suffix="{eos}",
        eos_follows=False,
    ),
    replace(
        BAICHUAN2,
        name="baichuan",
        source="huggingface.co/baichuan-inc/Baichuan-13B-Chat, modeling_baichuan.py and generation_config.json",
        prompt="<reserved_102>{content}",
        roles={"assistant": "<reserved_103>"},
        marks=("<reserved_102>", "<reserved_103>"),
    ),
    Template(
        name="chatglm2",
        source="huggingface.co/THUDM/chatglm2-6b, tokenization_chatglm.py, build_prompt",
        prefix="[gMASK]sop",
        prompt="[Round {round}]\n\n问：{content}\n\n",
        separator="\n\n",
        suffix="",
        roles={"assistant": "答："},
        marks=("[gMASK]", "sop"),
        eos_follows=True,
    ),
    replace(
        GLM4,
        name="chatglm3",
        source="github.com/THUDM/ChatGLM3, PROMPT.md",
        prefix="[gMASK]sop",
        marks=("[gMASK]", "sop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    ),
    GLM4,
    replace(GLM4, name="glmz1", source=LF + ", glmz1", thinking=Thinking()),
    replace(
        GLM4,
        name="codegeex4",
        source=LF + ", codegeex4",
        lead="",
        default_system=(
            "你是一位智能编程助手，你叫CodeGeeX。你会为用户回答关于编程、代码、计算机方面的任何问题，"
            "并提供格式规范、可以执行、准确安全的代码，并在必要时提供详细的解释。"
        ),
        roles={"assistant": "<|assistant|>\n", "tool": "<|observation|>\n{content}"},
    ),
    Template(name="codegeex2", source=LF + ", codegeex2", prefix="[gMASK]sop", marks=("[gMASK]", "sop")),
    replace(
        LLAMA2,
        name="llama2_zh",
        source="github.com/ymcui/Chinese-LLaMA-Alpaca-2, scripts/inference",
        default_system="You are a helpful assistant. 你是一个乐于助人的助手。",
    ),
    replace(CHATML, name="yi", source=config_of("01-ai/Yi-6B-Chat")),
    Template(
        name="deepseek",
        source=config_of("deepseek-ai/deepseek-llm-7b-chat"),
        prefix="{bos}",
        prompt="User: {content}\n\n",
        lead=" ",
        system_prefix="{content}\n\n",
        roles={"assistant": "Assistant:"},
    ),
    Template(
        name="deepseekcoder",
        source=config_of("deepseek-ai/deepseek-coder-6.7b-instruct"),
        prefix="{bos}",
        prompt="### Instruction:\n{content}\n",
        lead="\n",
        suffix="\n<|EOT|>",
        separator="\n",
        default_system=(
            "You are an AI programming assistant, utilizing the Deepseek Coder model, developed by Deepseek Company, "
            "and you only answer questions related to computer science. For politically sensitive questions, security "
            "and privacy issues, and other non-computer science questions, you will refuse to answer\n"
        ),
        roles={"assistant": "### Response:"},
        marks=("<|EOT|>",),
    ),
    DEEPSEEK3,
    # The prompt opens the think block; the history holds answers only.
    replace(
        DEEPSEEK3,
        name="deepseekr1",
        source=config_of("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
        thinking=Thinking(asks=True),
    ),
    INTERN,
    replace(INTERN, name="internlm"),
    replace(CHATML, name="intern2", source=config_of("internlm/internlm2-chat-7b"), prefix="{bos}"),
    Template(
        name="aquila",
        source=LF + ", aquila",
        prompt="Human: {content}###",
        suffix="###",
        default_system=(
            "A chat between a curious human and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the human's questions."
        ),
        system_prefix="System: {content}###",
        roles={"assistant": "Assistant:"},
        stop_words=("</s>",),
    ),
    Template(
        name="atom",
        source="github.com/LlamaFamily/Llama-Chinese, README",
        prompt="{bos}Human: {content}\n{eos}",
        suffix="\n{eos}",
        roles={"assistant": "{bos}Assistant:"},
    ),
    Template(
        name="belle",
        source=LF + ", belle",
        prefix="{bos}",
        prompt="Human: {content}\n\n",
        separator="\n\n",
        roles={"assistant": "Belle: "},
    ),
    Template(
        name="bluelm",
        source="github.com/vivo-ai-lab/BlueLM, README",
        prompt="[|Human|]:{content}",
        roles={"assistant": "[|AI|]:"},
        marks=("[|Human|]:", "[|AI|]:"),
    ),
    Template(
        name="cpm",
        source=config_of("openbmb/MiniCPM-2B-sft-bf16"),
        prefix="{bos}",
        prompt="<用户>{content}",
        roles={"assistant": "<AI>"},
    ),
    replace(CHATML, name="cpm3", source=config_of("openbmb/MiniCPM3-4B"), prefix="{bos}"),
    replace(CHATML, name="cpm4", source=LF + ", cpm4", prefix="{bos}"),
    replace(
        CHATML,
        name="ernie",
        source=LF + ", ernie",
        prompt="<|im_start|>user\n{content}<|im_end|>\n\n",
        separator="\n\n",
        default_system="<global_setting>\nthink_mode=True\n</global_setting>",
        system_prefix="<|im_start|>system\n{content}<|im_end|>\n\n",
        roles={"assistant": "<|im_start|>assistant\n", "tool": "<|im_start|>tool\n{content}<|im_end|>\n\n"},
    ),
    Template(
        name="ernie_nothink",
        source=LF + ", ernie_nothink",
        prefix="<|begin_of_sentence|>",
        prompt="User: {content}\n",
        suffix="<|end_of_sentence|>",
        system_prefix="{content}\n",
        roles={"assistant": "Assistant: "},
        marks=("<|begin_of_sentence|>", "<|end_of_sentence|>"),
    ),
    Template(
        name="hunyuan",
        source=LF + ", hunyuan",
        prefix="<|startoftext|>",
        prompt="{content}<|extra_0|>",
        suffix="<|eos|>",
        system_prefix="{content}<|extra_4|>",
        marks=("<|startoftext|>", "<|extra_0|>", "<|extra_4|>", "<|eos|>"),
    ),
    Template(
        name="index",
        source=LF + ", index",
        prompt="reserved_0{content}",
        suffix="",
        system_prefix="<unk>{content}",
        roles={"assistant": "reserved_1"},
        marks=("<unk>", "reserved_0", "reserved_1"),
        eos_follows=True,
    ),
    replace(
        CHATML,
        name="marco",
        source=LF + ", marco",
        default_system=(
            "你是一个经过良好训练的AI助手，你的名字是Marco-o1."
            "由阿里国际数字商业集团的AI Business创造.\n## 重要！！！！！\n"
            "当你回答问题时，你的思考应该在<Thought>内完成，<Output>内输出你的结果。\n"
            "<Thought>应该尽可能是英文，但是有2个特例，一个是对原文中的引用，另一个是是数学应该使用markdown格式，"
            "<Output>内的输出需要遵循用户输入的语言。\n"
        ),
    ),
    replace(
        QWEN,
        name="mimo",
        source=LF + ", mimo",
        default_system="You are a helpful assistant.",
        thinking=Thinking(),
    ),
    Template(
        name="moonlight",
        source=LF + ", moonlight",
        prompt="<|im_user|>user<|im_middle|>{content}<|im_end|>",
        suffix="<|im_end|>",
        default_system="You are a helpful assistant provided by Moonshot-AI.",
        system_prefix="<|im_system|>system<|im_middle|>{content}<|im_end|>",
        roles={"assistant": "<|im_assistant|>assistant<|im_middle|>"},
        marks=("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>"),
    ),
    Template(
        name="orion",
        source="huggingface.co/OrionStarAI/Orion-14B-Chat, generation_utils.py; " + LF + ", orion",
        prefix="{bos}",
        prompt="Human: {content}\n\n",
        roles={"assistant": "Assistant: {eos}"},
    ),
    Template(
        name="seed_coder",
        source=LF + ", seed_coder",
        prompt="{bos}user\n{content}{eos}",
        default_system=(
            "You are an AI programming assistant, utilizing the Seed-Coder model, developed by ByteDance Seed, "
            "and you only answer questions related to computer science. For politically sensitive questions, "
            "security and privacy issues, and other non-computer science questions, you will refuse to answer.\n\n"
        ),
        system_prefix="{bos}system\n{content}{eos}",
        roles={"assistant": "{bos}assistant\n"},
    ),
    replace(
        LLAMA3,
        name="skywork_o1",
        source=LF + ", skywork_o1",
        default_system=(
            "You are Skywork-o1, a thinking model developed by Skywork AI, specializing in solving complex problems "
            "involving mathematics, coding, and logical reasoning through deep thought. When faced with a user's "
            "request, you first engage in a lengthy and in-depth thinking process to explore possible solutions to the "
            "problem. After completing your thoughts, you then provide a detailed explanation of the solution process "
            "in your response."
        ),
    ),
    Template(
        name="telechat",
        source=LF + ", telechat",
        prompt="<_user>{content}",
        system_prefix="<_system>{content}<_end>",
        roles={"assistant": "<_bot>"},
        marks=("<_user>", "<_bot>"),
    ),
    Template(
        name="telechat2",
        source=LF + ", telechat2",
        prompt="<_user>{content}",
        default_system=(
            "你是中国电信星辰语义大模型，英文名是TeleChat，你是由中电信人工智能科技有限公司和中国电信人工智能研究院"
            "（TeleAI）研发的人工智能助手。"
        ),
        system_prefix="<_system>{content}",
        roles={"assistant": "<_bot>"},
        marks=("<_system>", "<_user>", "<_bot>"),
    ),
    Template(
        name="xuanyuan",
        source=LF + ", xuanyuan",
        prompt="Human: {content} ",
        default_system=(
            "以下是用户和人工智能助手之间的对话。用户以Human开头，人工智能助手以Assistant开头，"
            "会对人类提出的问题给出有帮助、高质量、详细和礼貌的回答，并且总是拒绝参与与不道德、"
            "不安全、有争议、政治敏感等相关的话题、问题和指示。\n"
        ),
        roles={"assistant": "Assistant:"},
    ),
    Template(
        name="xverse",
        source="huggingface.co/xverse/XVERSE-13B-Chat, modeling_xverse.py; " + LF + ", xverse",
        prompt="Human: {content}\n\n",
        roles={"assistant": "Assistant: "},
    ),
    Template(
        name="yuan",
        source=LF + ", yuan",
        prompt="{content}<sep>",
        suffix="<eod>",
        separator="\n",
        marks=("<sep>", "<eod>"),
    ),
    Template(
        name="ziya",
        source="huggingface.co/IDEA-CCNL/Ziya-LLaMA-13B-v1, model card",
        prompt="<human>:{content}\n",
        separator="\n",
        roles={"assistant": "<bot>:"},
    ),
]
