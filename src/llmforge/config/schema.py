"""Every key a recipe may hold: type, default, range, meaning, said once.

Names and defaults are LLaMA-Factory's. A recipe is flat; the groups below only sort the keys for the code that reads
them (`recipe.train.learning_rate`). Keys that Forge knows but does not act on stand in config/aliases.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmforge.config.option import option

TRAIN = ("train",)
GENERATION = ("predict", "chat", "api")
RL = ("ppo", "grpo")
REFERENCE_STAGES = ("dpo", "kto", "ppo")


@dataclass(frozen=True)
class ModelConfig:
    """Which model, where from, in which precision and on which device."""

    model_name_or_path: str | None = option(
        None, "Local folder, hub id, .gguf file, or pypi:PACKAGE/FILE.gguf; with an adapter of ours it may be left out."
    )
    adapter_name_or_path: list[str] = option([], "Adapter folders; all but the last are merged into the base first.")
    adapter_folder: str | None = option(None, "Folder inside a hub repository that holds the adapter.")
    model_source: str = option(
        "auto", "Where a hub id is looked up; local files come first.", choices=("auto", "local", "hf", "modelscope")
    )
    model_revision: str = option("main", "Branch, tag or commit of a hub model.")
    cache_dir: str | None = option(None, "Folder for downloaded and converted models.", path="output")
    hub_mirror: str | None = option(
        None, "Base URL of a Hugging Face mirror; default $HF_ENDPOINT, then huggingface.co."
    )
    hf_hub_token: str | None = option(None, "Access token of the Hugging Face hub; better set HF_TOKEN.", secret=True)
    ms_hub_token: str | None = option(None, "Access token of ModelScope.", secret=True)
    trust_remote_code: bool = option(False, "Run Python code that comes with the model; the files are named first.")
    device: str = option(
        "auto", "Where to compute; auto takes the GPU when there is one.", choices=("auto", "cpu", "cuda")
    )
    infer_dtype: str = option(
        "auto",
        "Precision for predict, chat and api; auto is bf16 or fp16 on a GPU, fp32 on a CPU.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    flash_attn: str = option(
        "auto",
        "Attention kernel; one that is asked for and absent is an error.",
        choices=("auto", "disabled", "eager", "sdpa", "fa2", "fa3"),
    )
    rope_scaling: str | dict | None = option(
        None, "Position scaling: linear, dynamic, yarn, llama3, or a mapping as in config.json."
    )
    quantization_bit: int | None = option(None, "Load the base in 8 or 4 bit.", choices=(8, 4))
    quantization_method: str = option("bnb", "Library for quantization_bit.", choices=("bnb",))
    quantization_type: str = option("nf4", "4-bit number format.", choices=("nf4", "fp4"))
    double_quantization: bool = option(True, "Quantise the 4-bit scales too.")
    resize_vocab: bool = option(False, "Grow the embeddings to the tokenizer's size.")
    add_tokens: list[str] = option([], "Ordinary tokens to add; needs resize_vocab.")
    add_special_tokens: list[str] = option([], "Control tokens to add; needs resize_vocab.")


@dataclass(frozen=True)
class DataConfig:
    """Which rows, in which template, how long."""

    template: str = option("auto", "Chat template: a name, a YAML file, or auto for the tokenizer's own.")
    dataset: list[str | dict] = option([], "Names from dataset_info.json, file paths, or inline entries.")
    eval_dataset: list[str | dict] = option([], "Data sets to evaluate or predict on.")
    dataset_dir: str = option("data", "Folder of dataset_info.json, or the registry itself.", path="input")
    cutoff_len: int = option(2048, "Tokens a row may have.", above=0)
    truncation: str = option(
        "right",
        "What happens to a longer row: right keeps the end-of-turn token, split makes several rows.",
        choices=("drop", "left", "right", "split", "raise"),
    )
    max_samples: int | None = option(None, "Rows taken from each data set, before splitting.", at_least=1)
    val_size: float = option(0.0, "Held-out share (below 1) or number of rows (1 and more).", at_least=0)
    val_group_by: str | None = option(None, "Column whose equal values stay on one side of the split.")
    train_on_prompt: bool = option(False, "Learn the prompt's tokens too.", stages=("sft",))
    mask_history: bool = option(False, "Learn only the last reply of a conversation.", stages=("sft",))
    packing: bool | None = option(
        None, "Put several rows into one sequence; they never see each other. Default: pt only."
    )
    mix_strategy: str = option(
        "concat",
        "How data sets are joined.",
        choices=(
            "concat",
            "interleave_under",
            "interleave_over",
            "interleave_once",
            "proportional",
            "equal",
            "log_size",
            "temperature",
        ),
    )
    interleave_probs: list[float] = option([], "Share of each data set when interleaving; must add up to 1.")
    mix_temperature: float = option(2.0, "T of mix_strategy temperature: shares go with rows ** (1 / T).", above=0)
    mix_rows: int | None = option(None, "Rows of an epoch under proportional to temperature; default all.", at_least=1)
    mix_repeat: bool = option(True, "Rows of a small data set may come again within an epoch.")
    mix_weights: dict = option({}, "Factor of a data set's share, by its name, for example {reports: 2}.")
    mix_counts: dict = option({}, "Rows of a data set in an epoch, by its name; drawn anew for each epoch.")
    mix_caps: dict = option({}, "Most rows of a data set, or of a group of mix_groups, in an epoch.")
    mix_groups: dict = option({}, "Groups of data sets for mix_caps: {open: [alpaca, belle]}.")
    domain_ratio: float | None = option(None, "Share of rows that domain_datasets get in an epoch.", above=0, below=1)
    domain_datasets: list[str] = option([], "Data sets of the domain, for domain_ratio.")
    streaming: bool = option(False, "Read rows while training instead of before.")
    buffer_size: int = option(16384, "Rows shuffled at a time when streaming.", at_least=1)
    overwrite_cache: bool = option(False, "Encode again although an encoded copy is there.")
    default_system: str | None = option(None, "System text for rows that have none; overrides the template's.")
    enable_thinking: bool | None = option(
        True,
        "Thinking models: true trains and asks for reasoning, false forces an empty think block, null leaves rows.",
    )
    tool_format: str | None = option(None, "Tool-call syntax, when it differs from the template's own.")
    preprocessing_num_workers: int | None = option(
        None, "Processes for encoding; the default suits the machine.", at_least=1
    )


@dataclass(frozen=True)
class FinetuneConfig:
    """What is trained: the stage and which weights."""

    stage: str = option("sft", "Training stage.", choices="STAGES")
    finetuning_type: str = option("lora", "Which weights learn.", choices="FINETUNING_TYPES")
    lora_rank: int = option(8, "Rank of the low-rank update.", at_least=1, at_most=65536)
    lora_alpha: float | None = option(None, "Scale of the update; default 2 x lora_rank.", above=0)
    lora_dropout: float = option(0.0, "Dropout before the update.", at_least=0, below=1)
    lora_target: list[str] = option(["all"], "Linear layers to adapt: names, all, or qkv.")
    additional_target: list[str] = option([], "Further modules trained and saved whole, such as embed_tokens.")
    use_rslora: bool = option(False, "Scale by alpha / sqrt(rank) instead of alpha / rank.")
    use_dora: bool = option(False, "Weight-decomposed LoRA.")
    lora_init: str | bool = option(
        True, "Initial LoRA weights: true, gaussian, pissa, pissa_niter_16, olora, eva, orthogonal."
    )
    pissa_init: bool = option(False, "LLaMA-Factory's spelling of lora_init: pissa.")
    pissa_iter: int = option(16, "Iterations of the fast SVD for pissa; -1 takes the exact one.", at_least=-1)
    pissa_convert: bool = option(False, "Save a pissa adapter as a plain LoRA adapter.")
    loraplus_lr_ratio: float | None = option(None, "Learning rate of B over that of A (LoRA+).", above=0)
    loraplus_lr_embedding: float = option(1e-6, "Learning rate of LoRA embeddings (LoRA+).", above=0)
    create_new_adapter: bool = option(
        False, "Merge the given adapters and start a new one, instead of continuing the last."
    )
    peft_type: str | None = option(None, "PEFT method when finetuning_type is peft, for example LOHA or IA3.")
    peft_kwargs: dict = option({}, "Arguments of that method's config class.")
    freeze_trainable_layers: int = option(2, "Layers that learn: from the end (>0) or from the start (<0).")
    freeze_trainable_modules: list[str] = option(["all"], "Modules inside those layers.")
    freeze_extra_modules: list[str] = option([], "Modules outside the layers that learn too.")
    pure_bf16: bool = option(False, "Train whole-model weights in bf16 without fp32 copies.")
    rm_loss: str = option(
        "token",
        "Where a reward model compares two replies: at every token, at their means, or at their ends.",
        choices=("token", "mean", "end"),
        stages=("rm",),
    )
    pref_loss: str = option(
        "sigmoid",
        "Loss over pairs; orpo and simpo need no reference.",
        choices=("sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo"),
        stages=("dpo",),
    )
    pref_beta: float = option(
        0.1, "How far the policy is held to the reference; larger is nearer.", above=0, stages=("dpo", "kto")
    )
    pref_ftx: float = option(
        0.0, "Weight of the good replies' cross-entropy beside the loss.", at_least=0, stages=("dpo", "kto")
    )
    dpo_label_smoothing: float = option(
        0.0, "Share of pairs believed to be the wrong way round.", at_least=0, below=0.5, stages=("dpo",)
    )
    simpo_gamma: float = option(0.5, "Margin by which simpo wants the good reply ahead.", at_least=0, stages=("dpo",))
    kto_chosen_weight: float = option(1.0, "Weight of desirable replies.", at_least=0, stages=("kto",))
    kto_rejected_weight: float = option(1.0, "Weight of undesirable replies.", at_least=0, stages=("kto",))
    ref_model: str | None = option(
        None, "Reference model; default: the model as it is before the first step.", stages=REFERENCE_STAGES
    )
    ref_model_adapters: list[str] = option([], "Adapters of the reference model.", stages=REFERENCE_STAGES)
    ref_model_quantization_bit: int | None = option(
        None, "Load the reference model in 8 or 4 bit.", choices=(8, 4), stages=REFERENCE_STAGES
    )
    precompute_ref_log_probs: bool | None = option(
        None,
        "Ask the reference once for each row, before training; default: where rows come again or nothing else can.",
        stages=("dpo", "kto"),
    )


@dataclass(frozen=True)
class RlConfig:
    """How replies are drawn, rewarded and learned from in the stages ppo and grpo."""

    reward_model: str | None = option(
        None,
        "Run folder of a reward model (stage rm), or base URL of a server that scores: http://127.0.0.1:8000/v1.",
        stages=RL,
    )
    reward_model_name: str | None = option(
        None, "Served name of the reward model behind a URL; default: the first one there.", stages=RL
    )
    reward_funcs: list[str] = option(
        [], "Functions that reward a reply; plugins add their own.", choices="REWARDS", stages=RL
    )
    reward_weights: list[float] = option(
        [], "Weights of reward_model and then of each of reward_funcs in their sum; default 1 each.", stages=RL
    )
    reward_pattern: str | None = option(
        None, "Regular expression of the reward function regex; it must fit somewhere in the reply.", stages=RL
    )
    num_generations: int | None = option(
        None, "Replies drawn to a prompt; default 1 for ppo, 8 for grpo.", at_least=1, stages=RL
    )
    rollout_temperature: float = option(
        1.0, "Flatness of the distribution that roll-outs draw from; 1 is the policy itself.", above=0, stages=RL
    )
    rollout_top_p: float = option(1.0, "Smallest set of tokens roll-outs draw from.", above=0, at_most=1, stages=RL)
    rollout_top_k: int = option(0, "Likeliest tokens roll-outs draw from; 0: all.", at_least=0, stages=RL)
    ppo_epochs: int = option(1, "Times each roll-out is learned from; above 1 the ratios drift.", at_least=1, stages=RL)
    ppo_buffer_size: int = option(1, "Optimizer steps' worth of replies drawn at once.", at_least=1, stages=RL)
    ppo_clip: float = option(0.2, "The ratio of new to old probability counts up to 1 +- this.", above=0, stages=RL)
    ppo_entropy_coef: float = option(0.0, "Weight of the policy's entropy in the loss.", at_least=0, stages=RL)
    ppo_max_kl: float | None = option(
        1.0, "KL to the reference, in nats a token, at which training stops; null never stops.", above=0, stages=RL
    )
    ppo_kl_coef: float = option(0.1, "Weight of the KL penalty in the rewards.", at_least=0, stages=("ppo",))
    ppo_target: float | None = option(
        None, "KL in nats a reply towards which ppo_kl_coef is steered; default: it stays.", above=0, stages=("ppo",)
    )
    ppo_gamma: float = option(1.0, "Discount of later rewards.", above=0, at_most=1, stages=("ppo",))
    ppo_lambda: float = option(0.95, "Lambda of the advantage estimate.", at_least=0, at_most=1, stages=("ppo",))
    ppo_value_clip: float = option(0.2, "New values count up to old values +- this.", above=0, stages=("ppo",))
    ppo_reward_clip: float = option(5.0, "Scores are cut to +- this.", above=0, stages=("ppo",))
    ppo_score_norm: bool = option(False, "Scores minus their running mean over their deviation.", stages=("ppo",))
    ppo_whiten_rewards: bool = option(False, "Divide the rewards of a roll-out by their deviation.", stages=("ppo",))
    ppo_whiten_advantages: bool = option(
        False, "Advantages of a roll-out with mean 0 and deviation 1.", stages=("ppo",)
    )
    critic_learning_rate: float | None = option(
        None, "Peak learning rate of the critic; default: learning_rate.", above=0, stages=("ppo",)
    )
    ppo_ema_decay: float = option(
        0.992,
        "Decay of the average of the actor's weights that is saved as actor_ema; 0 keeps none.",
        at_least=0,
        below=1,
        stages=("ppo",),
    )
    grpo_kl_coef: float = option(
        0.0, "Weight of the KL to the reference in the loss; 0 computes no reference.", at_least=0, stages=("grpo",)
    )
    grpo_scale_rewards: bool = option(
        True, "Divide advantages by the standard deviation of their group.", stages=("grpo",)
    )
    grpo_loss: str = option(
        "reply",
        "What the mean runs over: reply weighs all replies alike (GRPO), token all tokens (DAPO).",
        choices=("reply", "token"),
        stages=("grpo",),
    )


@dataclass(frozen=True)
class TrainConfig:
    """How the optimizer runs. Keys not listed here but in transformers.TrainingArguments are in `recipe.hf`."""

    output_dir: str | None = option(None, "Folder of the run.", path="output")
    overwrite_output_dir: bool = option(False, "Start anew in a folder that holds a run.")
    do_train: bool = option(True, "Train; with do_predict or do_eval given alone, false as in LLaMA-Factory.")
    do_eval: bool = option(False, "Evaluate on the held-out rows.")
    do_predict: bool = option(False, "Generate for eval_dataset after training.")
    per_device_train_batch_size: int = option(8, "Rows per device and forward pass.", at_least=1)
    per_device_eval_batch_size: int = option(
        8, "Rows per device and forward pass in evaluation and predict.", at_least=1
    )
    gradient_accumulation_steps: int = option(1, "Forward passes per optimizer step.", at_least=1)
    learning_rate: float = option(5e-5, "Peak learning rate, reached after warm-up.", above=0)
    num_train_epochs: float = option(3.0, "Passes over the rows; fractions allowed.", above=0)
    max_steps: int = option(-1, "Optimizer steps; above 0 it overrides num_train_epochs.", at_most=10**9)
    lr_scheduler_type: str = option("linear", "Course of the learning rate after warm-up.", choices="LR_SCHEDULERS")
    lr_scheduler_kwargs: dict = option({}, "Arguments of that scheduler.")
    warmup_steps: float = option(0.0, "Steps of warm-up; below 1 it is a share of all steps.", at_least=0)
    optim: str = option("adamw_torch", "Optimizer, by its transformers name.", choices="OPTIMIZERS")
    weight_decay: float = option(0.0, "AdamW weight decay.", at_least=0)
    adam_beta1: float = option(0.9, "AdamW beta 1.", at_least=0, below=1)
    adam_beta2: float = option(0.999, "AdamW beta 2.", at_least=0, below=1)
    adam_epsilon: float = option(1e-8, "AdamW epsilon.", above=0)
    max_grad_norm: float = option(1.0, "Gradients are scaled down to this norm; 0 leaves them.", at_least=0)
    bf16: bool | None = option(None, "bf16 autocast; default: when the card has it.")
    fp16: bool | None = option(None, "fp16 autocast with loss scaling; default: on cards without bf16.")
    batching: str = option(
        "auto",
        "How rows go through the model: tree computes starts that rows share once; auto takes it where it is exact.",
        choices=("auto", "padded", "packed", "tree"),
    )
    tokens_per_pass: int | str = option(
        "auto", "Tokens of one forward pass with batching tree or packed; auto follows train_memory_gb."
    )
    train_memory_gb: float | None = option(
        None, "GB (10^9 bytes) training may take on its device; default: most of what is free at the start.", above=0
    )
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: less memory, a third slower."
    )
    neftune_noise_alpha: float | None = option(None, "Noise on embeddings (NEFTune).", at_least=0)
    label_smoothing_factor: float = option(0.0, "Label smoothing.", at_least=0, below=1)
    disable_shuffling: bool = option(False, "Rows in the order of their files, the same in every epoch.")
    group_by_length: bool = option(False, "Draw batches of rows of similar length.")
    seed: int = option(42, "Seed of everything random.", at_least=0, at_most=2**32 - 1)
    data_seed: int | None = option(None, "Seed of the row order; default: seed.", at_least=0, at_most=2**32 - 1)
    logging_steps: float = option(5, "Optimizer steps between log lines; below 1 it is a share of all steps.", above=0)
    save_strategy: str = option("steps", "When checkpoints are saved.", choices=("no", "steps", "epoch", "best"))
    save_steps: float = option(500, "Optimizer steps between checkpoints; below 1 a share.", above=0)
    save_total_limit: int | None = option(None, "Checkpoints kept.", at_least=1)
    save_only_model: bool = option(False, "Leave optimizer state out of checkpoints; they cannot be resumed then.")
    eval_strategy: str = option("no", "When evaluation runs.", choices=("no", "steps", "epoch"))
    eval_steps: float | None = option(None, "Optimizer steps between evaluations; default: logging_steps.", above=0)
    load_best_model_at_end: bool = option(False, "Keep the best checkpoint as the result.")
    metric_for_best_model: str | None = option(None, "Metric that decides; default loss.")
    greater_is_better: bool | None = option(None, "Direction of that metric; default by its name.")
    early_stopping_steps: int | None = option(None, "Evaluations without improvement before stopping.", at_least=1)
    resume_from_checkpoint: bool | str | None = option(
        None, "true: newest whole checkpoint of output_dir; or a path; false: start anew."
    )
    deepspeed: str | dict | None = option(
        None, "DeepSpeed JSON file, for example configs/deepspeed/z2.json, or a mapping."
    )
    ddp_timeout: int = option(180000000, "Seconds a rank waits for the others.", at_least=1)
    report_to: list[str] = option(
        ["none"], "Trackers by their Hugging Face names; each needs its own package.", choices="TRACKERS"
    )
    run_name: str | None = option(None, "Name of the run for trackers.")
    plot_loss: bool = option(True, "Draw training_loss.png.")
    nan_policy: str = option("stop", "What a NaN loss does.", choices=("stop", "warn"))


@dataclass(frozen=True)
class GenerateConfig:
    """How replies are drawn in predict, chat and as the server's defaults."""

    do_sample: bool = option(True, "Draw tokens; false takes the likeliest.", modes=GENERATION)
    temperature: float = option(0.95, "Flatness of the distribution.", at_least=0, modes=GENERATION)
    top_p: float = option(0.7, "Smallest set of tokens with this probability.", above=0, at_most=1, modes=GENERATION)
    top_k: int = option(50, "Likeliest tokens considered; 0: all.", at_least=0, modes=GENERATION)
    repetition_penalty: float = option(1.0, "Above 1 discourages tokens seen before.", above=0, modes=GENERATION)
    max_new_tokens: int = option(1024, "Tokens a reply may have.", at_least=1, modes=(*TRAIN, *GENERATION))
    max_length: int | None = option(None, "Tokens of prompt and reply together.", at_least=1, modes=GENERATION)
    skip_special_tokens: bool = option(True, "Leave control tokens out of the text.", modes=GENERATION)


@dataclass(frozen=True)
class EvalConfig:
    """How replies are scored."""

    metrics: list[str] = option(
        ["exact_match", "bleu", "rouge"], "Scores of predict and of evaluation with generation.", choices="METRICS"
    )
    label_field: str | None = option(None, "JSON field that holds the label, for accuracy and confusion matrix.")
    predict_with_generate: bool = option(False, "Generate during evaluation and score the text.")
    compute_accuracy: bool = option(False, "Report the share of supervised tokens predicted right.")


@dataclass(frozen=True)
class ServeConfig:
    """The server and the engine behind it."""

    infer_backend: str = option("local", "Engine.", choices="ENGINES", modes=GENERATION)
    base_url: str | None = option(
        None, "OpenAI-compatible server that infer_backend remote asks, up to /v1.", modes=GENERATION
    )
    key_env: str | None = option(
        None, "Environment variable with the key of that server; none is sent without it.", modes=GENERATION
    )
    vllm_python: str | None = option(
        None, "Python interpreter of an environment with vLLM, which infer_backend vllm starts.", modes=GENERATION
    )
    vllm_args: list[str] = option(
        [], "Further arguments of vLLM's server, for example [--enforce-eager].", modes=GENERATION
    )
    tensor_parallel_size: int = option(1, "Cards that vLLM lays one model over.", at_least=1, modes=GENERATION)
    adapters: dict = option(
        {}, "Served adapters by name, for example {classify: runs/a, extract: runs/b}.", modes=("api",)
    )
    served_model_name: str | None = option(
        None, "Name of the base, or of the only adapter, in /v1/models.", modes=("api",)
    )
    embedders: dict = option(
        {},
        "Embedding models by name, for example {m3e: moka-ai/m3e-base} or {bge: {path: models/bge, pooling: cls}}.",
        modes=("api",),
    )
    embed_pooling: str | None = option(
        None,
        "How the served model's own states become one vector; default: what its files say, else the last token's.",
        choices=("mean", "last", "cls"),
        modes=("api",),
    )
    replicas: int | str = option(
        "auto",
        "Worker processes of the local engine, which share the weights; auto tries how many are fastest.",
        modes=("api",),
    )
    threads: int | str = option(
        "auto", "Threads of each worker; auto shares all cores among the workers that are busy.", modes=("api",)
    )
    kv_cache_gb: float | None = option(
        None,
        "GB for keys and values of all workers together, at most half of what is free; null is room for 16,384 tokens, "
        "and for a whole context of each worker, within 4 GB.",
        above=0,
        modes=("api",),
    )
    worker_rows: int = option(
        64, "Replies that one worker decodes together; more wait for their turn.", at_least=1, modes=("api",)
    )
    host: str = option("127.0.0.1", "Address to listen on.", modes=("api",))
    port: int = option(8000, "Port to listen on.", at_least=0, at_most=65535, modes=("api",))
    api_key: str | None = option(None, "Key clients must send; better set FORGE_API_KEY.", secret=True, modes=("api",))
    api_keys_file: str | None = option(
        None, "YAML file of several keys by client name; read anew when it changes.", path="input", modes=("api",)
    )
    model_aliases: dict = option({}, "More names of served models, for example {gpt-4o: classify}.", modes=("api",))
    max_queue: int = option(64, "Requests that may wait; more get 429.", at_least=0, modes=("api",))
    max_running: int | None = option(
        None,
        "Replies the engine works on at once, the others wait; null is what it decodes together.",
        at_least=1,
        modes=("api",),
    )
    queue_timeout_s: float = option(
        60.0, "Seconds a request may wait for the engine; then 503.", above=0, modes=("api",)
    )
    deadline_s: float | None = option(None, "Seconds a request may take, waiting included.", above=0, modes=("api",))
    drain_s: float = option(30.0, "Seconds running requests get to end after SIGTERM.", at_least=0, modes=("api",))
    rate_limit: int | None = option(
        None, "Requests a client may send per minute; more get 429.", at_least=1, modes=("api",)
    )
    rate_limit_total: int | None = option(
        None, "Requests all clients together may send per minute; more get 429.", at_least=1, modes=("api",)
    )
    max_body_bytes: int = option(4 << 20, "Largest body of a request; more gets 413.", at_least=1024, modes=("api",))
    max_connections: int = option(
        256, "Open connections of one address; more are closed. 0: no limit.", at_least=0, modes=("api",)
    )
    strict_400: bool = option(
        False,
        "400 for unknown models and for a last message that is not the user's, as some old clients expect.",
        modes=("api",),
    )
    cors_origins: list[str] = option(
        [], "Web pages that may call the API, for example https://example.org.", modes=("api",)
    )
    root_path: str = option("", "Path under which a proxy serves the API, for example /forge.", modes=("api",))
    access_log: str | None = option(
        "stderr", "File for one JSON line per request, or stderr; null for none.", modes=("api",)
    )
    log_prompts: bool = option(False, "Write messages and prompts into the access log.", modes=("api",))
    degrade_auto: str = option(
        "off",
        "What the server falls back to by itself while requests fail: off, queue, canned or hide.",
        choices=("off", "queue", "canned", "hide"),
        modes=("api",),
    )
    degrade_text: str = option(
        "The service is busy. Please try again later.", "The reply of a degraded server in mode canned.", modes=("api",)
    )
    degrade_file: str | None = option(
        None, "File that keeps the degradation switch over restarts.", path="output", modes=("api",)
    )
    gateway: str | None = option(
        None, "Gateway to register at while serving, for example http://10.0.0.1:7690.", modes=("api",)
    )
    gateway_key_env: str = option(
        "FORGE_API_KEY", "Environment variable with an admin's key of the gateway.", modes=("api",)
    )
    worker_name: str | None = option(None, "Name at the gateway; null is the machine's name and port.", modes=("api",))
    worker_url: str | None = option(
        None, "Where the gateway reaches this server, up to /v1; null: by host and port.", modes=("api",)
    )
    worker_key_env: str | None = option(
        None,
        "Environment variable, at the gateway, with a key of this server; null is FORGE_API_KEY where it asks for one.",
        modes=("api",),
    )
    worker_slots: int = option(
        1, "How much this server bears beside the gateway's other workers.", at_least=1, modes=("api",)
    )


@dataclass(frozen=True)
class ExportConfig:
    """Merging adapters and writing a servable folder."""

    export_dir: str | None = option(None, "Folder to write; default RUN/export.", path="output", modes=("export",))
    export_size: int = option(5, "Largest shard in GB.", at_least=1, modes=("export",))
    export_device: str = option("cpu", "Where merging computes.", choices=("cpu", "auto"), modes=("export",))
    export_dtype: str = option(
        "auto",
        "Precision of the written weights; auto is the base's own.",
        choices=("auto", "float32", "bfloat16", "float16"),
        modes=("export",),
    )


@dataclass(frozen=True)
class LaunchConfig:
    """How many processes train."""

    nproc: int | str = option("auto", "Processes on this machine; auto is one per visible GPU.", modes=TRAIN)
    master_port: int = option(
        0, "Port of the processes' meeting point; 0 picks a free one.", at_least=0, at_most=65535, modes=TRAIN
    )


@dataclass(frozen=True)
class Origin:
    """Where a value came from: "default", "FILE line N", "command line", "run RUN", "alias of KEY"."""

    text: str
    file: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: every key has its value, every given key its origin."""

    model: ModelConfig
    data: DataConfig
    finetune: FinetuneConfig
    train: TrainConfig
    generate: GenerateConfig
    eval: EvalConfig
    serve: ServeConfig
    export: ExportConfig
    launch: LaunchConfig
    rl: RlConfig = RlConfig()
    hf: dict[str, Any] = field(default_factory=dict)  # given keys of transformers.TrainingArguments that no group lists
    plugins: tuple[str, ...] = ()  # Python files that register names
    origins: dict[str, Origin] = field(default_factory=dict)  # of given keys only
    notes: tuple[str, ...] = ()  # said once at the start: aliases used, keys without effect here
    run_dir: str | None = None  # set when the recipe came from a run folder
