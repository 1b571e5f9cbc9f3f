"""All tables of names a recipe may use. Strings only: what they point at is imported when it is first asked for."""

from __future__ import annotations

from llmforge.registry import Registry

STAGES = Registry(
    "stage",
    {
        "sft": "llmforge.train.stages.sft:SftStage",
        "pt": "llmforge.train.stages.pt:PtStage",
        "rm": "llmforge.train.stages.rm:RmStage",
        "dpo": "llmforge.train.stages.dpo:DpoStage",
        "kto": "llmforge.train.stages.kto:KtoStage",
        "ppo": "llmforge.train.stages.ppo:PpoStage",
        "grpo": "llmforge.train.stages.grpo:GrpoStage",
    },
)

FINETUNING_TYPES = Registry(
    "finetuning_type",
    {
        "full": "llmforge.model.adapters:train_all",
        "freeze": "llmforge.model.adapters:train_some_layers",
        "lora": "llmforge.model.adapters:add_lora",
        "peft": "llmforge.model.adapters:add_peft",
    },
)

ENGINES = Registry(
    "infer_backend",
    {
        "local": "llmforge.infer.local.engine:LocalEngine",
        "remote": "llmforge.infer.remote:RemoteEngine",
        "gguf": "llmforge.infer.gguf:GgufEngine",
        "vllm": "llmforge.infer.vllm:VllmEngine",
    },
)

# Under the local engine: synchronous generation over a live module. Training reaches roll-outs through this table.
CORES = Registry(
    "core",
    {
        "local": "llmforge.infer.local.core:LocalCore",
    },
)

METRICS = Registry(
    "metric",
    {
        "exact_match": "llmforge.metrics.exact:exact_match",
        "label": "llmforge.metrics.label:label_scores",
        "json": "llmforge.metrics.json_fields:json_scores",
        "bleu": "llmforge.metrics.bleu:bleu4",
        "rouge": "llmforge.metrics.rouge:rouge",
    },
)

# What rewards a reply in the stages ppo and grpo: function(samples, options) -> one number a sample.
REWARDS = Registry(
    "reward_funcs",
    {
        "json_valid": "llmforge.train.rl.functions:json_valid",
        "exact_match": "llmforge.train.rl.functions:exact_match",
        "regex": "llmforge.train.rl.functions:regex",
        "ended": "llmforge.train.rl.functions:ended",
    },
)

FORMATS = Registry(
    "formatting",
    {
        "alpaca": "llmforge.data.formats.alpaca:read",
        "sharegpt": "llmforge.data.formats.sharegpt:read",
        "openai": "llmforge.data.formats.openai:read",
        "text": "llmforge.data.formats.text:read",
    },
)

LR_SCHEDULERS = Registry(
    "lr_scheduler_type",
    {
        name: name
        for name in (
            "linear",
            "cosine",
            "cosine_with_restarts",
            "polynomial",
            "constant",
            "constant_with_warmup",
            "inverse_sqrt",
            "reduce_lr_on_plateau",
            "cosine_with_min_lr",
            "cosine_warmup_with_min_lr",
            "warmup_stable_decay",
        )
    },
)

# The names of transformers' OptimizerNames, which cannot be asked without importing torch; a test compares the two.
OPTIMIZERS = Registry(
    "optim",
    {
        name: name
        for name in (
            "adamw_torch",
            "adamw_torch_fused",
            "adamw_torch_xla",
            "adamw_torch_npu_fused",
            "adamw_torch_4bit",
            "adamw_torch_8bit",
            "adamw_anyprecision",
            "adamw_bnb_8bit",
            "adamw_8bit",
            "adafactor",
            "adagrad",
            "ademamix",
            "ademamix_8bit",
            "sgd",
            "lion_8bit",
            "lion_32bit",
            "paged_adamw_32bit",
            "paged_adamw_8bit",
            "paged_ademamix_32bit",
            "paged_ademamix_8bit",
            "paged_lion_32bit",
            "paged_lion_8bit",
            "rmsprop",
            "rmsprop_bnb",
            "rmsprop_bnb_8bit",
            "rmsprop_bnb_32bit",
            "galore_adamw",
            "galore_adamw_8bit",
            "galore_adafactor",
            "galore_adamw_layerwise",
            "galore_adamw_8bit_layerwise",
            "galore_adafactor_layerwise",
            "lomo",
            "adalomo",
            "grokadamw",
            "schedule_free_radam",
            "schedule_free_adamw",
            "schedule_free_sgd",
            "apollo_adamw",
            "apollo_adamw_layerwise",
            "stable_adamw",
        )
    },
)

# The names of transformers' reporting integrations, by the same test.
TRACKERS = Registry(
    "report_to",
    {
        name: name
        for name in (
            "none",
            "azure_ml",
            "clearml",
            "codecarbon",
            "comet_ml",
            "dagshub",
            "dvclive",
            "flyte",
            "kubeflow",
            "mlflow",
            "neptune",
            "swanlab",
            "tensorboard",
            "trackio",
            "wandb",
        )
    },
)
