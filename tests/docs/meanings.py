"""The purpose of each job file key and setting, in one sentence. Types, limits and defaults come from the models."""

from __future__ import annotations

JOB_KEYS = {
    "name": "The job's name. Commands accept it instead of the id.",
    "base_model": "A Hugging Face model (`org/name` or `org/name@revision`), or an allowed folder.",
    "datasets": "The training data, in this order. See [Datasets](#datasets).",
    "backend": "The training library. `auto` uses `unsloth` on a single supported NVIDIA GPU and `hf` otherwise.",
    "adapter": "`lora` trains with the model in full precision, `qlora` with the model in 4 bits.",
    "lora_r": "Rank of the adapter.",
    "lora_alpha": "Scale of the adapter. Its output is multiplied by `lora_alpha / lora_r`.",
    "lora_dropout": "Share of the adapter's inputs that is dropped during training.",
    "lora_target_modules": "Names of the layers that get an adapter, or a regular expression for their full names. "
    "`all-linear` means all linear layers except the output layer.",
    "lora_layers_to_transform": "Numbers of the layers that get an adapter, the first being 0. Empty means all.",
    "lora_target_parameters": "Names of parameters outside linear layers that get an adapter: the experts of a "
    "mixture. See [Experts](#experts). Backend `hf`.",
    "peft_use_rslora": "Multiplies the adapter's output by `lora_alpha / sqrt(lora_r)`, which suits high ranks.",
    "peft_use_dora": "DoRA: also trains the length of each row of a weight. Each step takes longer. Backend `hf`.",
    "peft_trainable_token_indices": "Numbers of tokens. Their embeddings are trained, too. Backend `hf`.",
    "sequence_len": "Maximum tokens per row. Longer rows are cut off, and longer `text` rows are split.",
    "tokens": "New tokens. Each is one text. See [New tokens](#new-tokens). Backend `hf`.",
    "added_tokens_overrides": "New tokens in the place of reserved ones, by the number of the reserved token.",
    "lora_model_dir": "An adapter that the job continues from: a finished job, or a folder, which the command line "
    "uploads. See [Continue from an adapter](#continue-from-an-adapter).",
    "lora_model": "Filled in by the server when the job is submitted: what was found under `lora_model_dir`.",
    "global_batch_size": "Rows per optimiser step, the same on every machine.",
    "micro_batch_size": "Rows per forward pass, where a pair counts as two. By default each machine chooses its own.",
    "num_epochs": "Number of epochs. This or `max_steps` is required.",
    "max_steps": "Optimiser steps of the job. It takes precedence over `num_epochs`.",
    "learning_rate": "The peak learning rate of the schedule.",
    "loraplus_lr_ratio": "LoRA+: the learning rate of the adapter's matrices B, as a multiple of `learning_rate`.",
    "loraplus_lr_embedding": "LoRA+: the learning rate of an adapter on an embedding.",
    "lr_scheduler": "The learning rate schedule after the warm-up.",
    "lr_scheduler_kwargs": "Settings of the schedule. See [Schedules](#schedules).",
    "warmup_ratio": "Share of the steps in which the learning rate rises from zero.",
    "warmup_steps": "The same as a number of steps. It excludes `warmup_ratio`.",
    "optimizer": "The optimiser. The 8-bit ones save GPU memory.",
    "adam_beta1": "Decay of AdamW's mean of gradients.",
    "adam_beta2": "Decay of AdamW's mean of squared gradients.",
    "adam_epsilon": "AdamW adds it to the root that it divides by.",
    "max_grad_norm": "Gradients are clipped to this norm. 0 disables clipping.",
    "weight_decay": "Weight decay of the optimiser.",
    "neftune_noise_alpha": "NEFTune: strength of the noise on the embeddings of training rows. 0 means none.",
    "seed": "Seed for the order of rows, the adapter's initial values and dropout.",
    "val_set_size": "Share of the rows in the validation split (0.05 = 5 %).",
    "train_on_inputs": "Whether to train on prompts in addition to answers.",
    "excess_length_strategy": "`truncate` cuts `text` rows off after `sequence_len` tokens, as all other rows. `split` "
    "refuses the job if they cannot be split. Without the key, they are split where that is possible. "
    "See [Long texts](#long-texts).",
    "chat_template": "`chatml`, or `jinja` with `chat_template_jinja`, in place of the template that comes with the "
    "model. See [Chat template](#chat-template).",
    "chat_template_jinja": "The text of a chat template, or for the command line the path of a `.jinja` file.",
    "eval_steps": "Steps between evaluations. The default is a fifth of the job.",
    "early_stopping_patience": "Ends the job after this number of evaluations without a lower validation loss. "
    "Needs a `val_set_size`.",
    "load_best_model_at_end": "Whether the adapter is the one with the lowest validation loss. Otherwise it is that of "
    "the last step. Needs a `val_set_size`, and checkpoints are a third larger.",
    "sample_prompts": "Test prompts that the model answers before the first step and at each evaluation.",
    "sample_max_tokens": "Maximum tokens of an answer to a sample prompt.",
    "encoding": (
        "The version of the way from rows to tokens. From 3 on, rows are written with TRL's training template where "
        "TRL has one for the model. From 4 on, turns may say whether they are trained on. Filled in by the server when "
        "the job is submitted."
    ),
    "val_split": "The version of the choice of validation rows. Filled in by the server when the job is submitted.",
    "accept_findings": "Data checks that would stop the job, and do not. See [Data checks](data-checks.md).",
    "evaluate": "The evaluation that follows when the job is done. `{}` takes the defaults. "
    "See [Evaluation](#evaluation).",
    "hub_model_id": "A repository on the Hugging Face hub (`OWNER/NAME`). The server pushes the adapter there when the "
    "job is done. See [Hugging Face hub](use-an-adapter.md#hugging-face-hub).",
    "hub_private": "`false` makes a new repository of `hub_model_id` public, and allows one that is.",
    "evaluation": "Filled in by the server in an evaluation. See [Evaluate an adapter](evaluation.md).",
    "export": "Filled in by the server in an export. See [Use an adapter](use-an-adapter.md#on-a-machine).",
    "chat": "Filled in by the server in a chat on a machine. See [Try it](use-an-adapter.md#try-it).",
    "numerics": "The version of the way in which a job computes. Filled in by the server when the job is submitted.",
    "checkpoint": "When checkpoints are saved and kept. See [Checkpoints](#checkpoints).",
    "placement": "Where the job can run. See [Placement](#placement).",
    "priority": "Higher runs first. Values above 0 need an admin.",
    "deadline": "A time with its zone, for example `2026-12-01T18:00:00+01:00`, or seconds "
    "since 1970. Jobs with an achievable deadline run first.",
    "rendered_at": "Filled in by the server when the job is submitted: the time that chat templates print as today, "
    "in seconds since 1970. A clone keeps that of its original.",
}
DATASET_KEYS = {
    "path": "A local file (the command line uploads it), an upload (`sha256:HEX`), a Hugging Face dataset "
    "(`org/name`, or `org/name@revision`), or a file in an allowed folder.",
    "type": "The row format. `auto` detects it from the keys of the first row. `task` is only for evaluations. "
    "See [Preference training](methods/preferences.md#rows) for `preference` and `unpaired_preference`.",
    "name": "The subset of a Hugging Face dataset that has several: a folder, or the beginning of its files' names.",
    "roles_to_train": "The roles of the turns that are trained on. What a turn says of itself comes first. "
    "See [Turns](#turns).",
    "mask_history": "Trains only on the last of these turns in each row (the name is LLaMA-Factory's).",
    "train_on_eos": "Which end tokens are trained: of each trained turn, of `all` turns, or only the `last` one.",
    "split": "The split of a Hugging Face dataset. All its shards are read, in their order.",
    "repeats": "How often an epoch has the rows of this file: `3` three times each, `0.5` half of them, the other half "
    "in the next epoch. See [Repeats](#repeats).",
    "field_messages": "The column with the turns, if it is not `messages`. See [Names of columns](#names-of-columns).",
    "message_property_mappings": "Names of the keys of a turn, for example `{role: from, content: value}`.",
    "roles": "Names of roles, for example `{user: [human], assistant: [gpt, bot]}`.",
    "field_system": "The column with the system prompt, if it is not `system`.",
    "field_instruction": "The column with the question, if it is not `instruction` or `question`.",
    "field_input": "The column with more of the question, if it is not `input`.",
    "field_output": "The column with the answer, if it is not `output` or `answer`.",
    "field": "The column with the text of `text` rows, if it is not `text`.",
    "sha256": "Filled in by the server when the job is submitted.",
    "file_format": "Filled in by the server when the job is submitted.",
    "rows": "Filled in by the server when the job is submitted.",
    "pieces": "Filled in by the server when the job is submitted. See [Long texts](#long-texts).",
}
TURNS = """\
In a conversation, all turns of the assistant are trained on. What a row may say besides the texts of its turns:

| key | where | meaning |
| --- | --- | --- |
| `train` or `training` | a turn | `true` or `false`: whether this turn is trained on, whatever its role |
| `weight` or `loss_weight` | a turn | 0 leaves the turn out of training, 1 does not. Other weights are refused. |
| `reasoning_content`, `reasoning` or `thinking` | a turn of the assistant | The thought before its answer |
| `tool_calls` or `function_call` | a turn of the assistant | Calls in OpenAI's form. They are trained on. |
| `name`, `tool_call_id` | a turn of the role `tool` | Which call it answers. The answer is not trained on. |
| `tools` or `functions` | the row | The schemas of the tools, as a list or as JSON text. |

The content of a turn is a string, or a list of parts of text that are joined. Parts of
the type `reasoning` are thoughts, those of `tool_call` are calls. The chat template gets a thought under
the name that it reads, and the arguments of a call (an object, or JSON text) in the form that it reads. Turns, calls,
tools and thoughts have to be found in what the model's chat template writes. A row is refused if the template leaves
out a turn, a call, a tool, or all its thoughts. If it leaves out only some of the thoughts, the preview and the session
say how many. Text between `<think>` and `</think>` stays text. A row without a trained turn is left out and named.

In ShareGPT rows the names are `from` and `value`, and the text of a turn from `function_call` is a call as JSON."""
SCHEDULE_KEYS = {
    "min_lr_rate": "`cosine_with_min_lr`, required: the lowest rate, as a share of `learning_rate`.",
    "num_decay_steps": "`warmup_stable_decay`, required: steps of the decay, which ends with the job.",
    "decay_type": "`warmup_stable_decay`: the form of the decay. The default is `cosine`.",
    "min_lr_ratio": "`warmup_stable_decay`: the lowest rate, as a share of `learning_rate`. The default is 0.",
    "timescale": "`inverse_sqrt`: the rate falls with the root of the steps divided by it. The default is the warm-up.",
    "power": "`polynomial`: the exponent. The default, 1, is a straight line.",
    "lr_end": "`polynomial`: the last learning rate, below `learning_rate`. The default is 1e-7.",
}
CHECKPOINT_KEYS = {
    "max_interval_s": "Maximum time between saves, in seconds. Trainhop saves more often if saving is cheap.",
    "keep": "Number of newest checkpoints to keep. "
    "An unfinished job also keeps the newest one's parent and the one loaded last.",
}
EVALUATION_KEYS = {
    "max_prompts": "How many prompts to ask.",
    "max_new_tokens": "Maximum tokens of an answer.",
    "temperature": "0 takes the most probable token, more draws tokens.",
    "prompts": "A file with prompts: `path` and `type` as of a [dataset](#datasets). Without it, the prompts are "
    "those of the validation rows, so the job needs a `val_set_size`.",
    "tasks": "A file of tasks that a program checks: its `path`. See [Evaluate an adapter](evaluation.md).",
    "benchmarks": "Names of [benchmarks](evaluation.md#benchmarks). `NAME@COMMIT` takes the items of this commit, "
    "otherwise the newest ones. The server fills in the commit and the hash of the items.",
    "judge": "A model that compares the answers on the same machine, by its name or as `model` with the name: an id on "
    "the hub, `ORG/NAME@COMMIT`, or a folder. See [Judge model](judge-model.md#on-the-machine-of-the-evaluation). "
    "The server fills in the commit and the memory that it needs.",
    "measures": "The version of what is measured. Filled in by the server when the job is submitted.",
}
PLACEMENT_KEYS = {
    "providers": "Allowed providers. Empty means any.",
    "accounts": "Allowed accounts, by name or id. Empty means any.",
    "max_session_s": "Session limit, in seconds.",
}

SETTINGS = {
    "data_dir": "Folder for the database, checkpoints, adapters, keys and tokens.",
    "host": "Address to listen on.",
    "port": "Port to listen on.",
    "allowed_hosts": "Additional host names that the server accepts.",
    "trusted_proxies": "Addresses of proxies in front of the server. Only their `X-Forwarded-For` counts.",
    "public_url": "Public address of this server, for machines and notebooks.",
    "database_url": "PostgreSQL (`postgresql://...`) instead of the SQLite file in the data folder.",
    "vault_key": "Key that encrypts credentials. By default it is in `vault.key` (mode 0600) in the data folder.",
    "allowed_folders": "Folders on the server that jobs can use. A model in such a folder runs "
    "only on machines that can read it.",
    "trusted_models": "Models that are allowed to run their own code.",
    "offline": "Do not use Hugging Face, neither on the server nor in workers on this computer.",
    "hub_endpoint": "An emulator of the Hugging Face hub on this computer.",
    "drivers": "Settings of providers and stores, as JSON by their names. Each has a variable of its own as well.",
    "max_upload_bytes": "Maximum size of an upload, in bytes.",
    "local_slots": "Concurrent workers on this computer. Only used on the first start. Change the pool later "
    "with `trainhop accounts change this-computer --set slots=2`.",
    "local_session_s": "Session limit on this computer. Only used on the first start, like `TRAINHOP_LOCAL_SLOTS`.",
    "lease_s": "Time without a report after which a lease expires.",
    "report_every_s": "Time between reports of a worker.",
    "start_grace_s": "Maximum time from the launch of a machine to the first call of its worker.",
    "stop_grace_s": "Maximum time for a session to save after a stop request.",
    "mtbf_s": "Mean time between failures, for the computation of the saving interval.",
    "tick_s": "Time between two rounds of the scheduler.",
    "reconcile_s": "Time between two rounds of reconciling.",
    "letters_s": "Time between two polls of the Drive mailboxes of offline notebooks.",
}
CLIENT_SETTINGS = {
    "TRAINHOP_SERVER_URL": "The server's address. By default the server of the data folder.",
    "TRAINHOP_TOKEN": "Your token. By default the one in the data folder.",
}
