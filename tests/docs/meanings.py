"""What each key of a job file and each setting is for, in one sentence; types, limits and defaults come from the models."""

from __future__ import annotations

JOB_KEYS = {
    "name": "What to call the job. Commands take this name in place of the id.",
    "base_model": "A model of the Hugging Face hub (`org/name`, or `org/name@revision`), or a folder that the operator allows.",
    "datasets": "The training data, in this order. See [Datasets](#datasets).",
    "backend": "The training library. `auto` takes `unsloth` on a single NVIDIA GPU that it supports and `hf` everywhere else.",
    "adapter": "`lora` trains beside the full-precision model, `qlora` beside a model held in 4 bits.",
    "lora_r": "Rank of the adapter.",
    "lora_alpha": "Scale of the adapter; its output is multiplied by `lora_alpha / lora_r`.",
    "lora_dropout": "Share of the adapter's inputs that is dropped while training.",
    "lora_target_modules": "Names of the layers that get an adapter.",
    "sequence_len": "Longest row in tokens; longer rows are cut.",
    "global_batch_size": "Rows per optimiser step, the same on every machine.",
    "micro_batch_size": "Rows per forward pass. Each machine chooses its own where this is left out.",
    "num_epochs": "How often the data is trained on. This or `max_steps` is needed.",
    "max_steps": "Optimiser steps of the whole job. It wins where both are given.",
    "learning_rate": "The highest learning rate of the schedule.",
    "lr_scheduler": "How the learning rate falls after the warm-up.",
    "warmup_ratio": "Share of all steps in which the learning rate rises from zero.",
    "optimizer": "The optimiser. The 8-bit ones save GPU memory.",
    "max_grad_norm": "Gradients are scaled down to this norm; 0 turns that off.",
    "weight_decay": "Weight decay of the optimiser.",
    "seed": "Decides the order of rows, the adapter's first values and dropout.",
    "val_set_size": "Share of the rows held out for the validation loss (0.05 is 5 %).",
    "train_on_inputs": "Whether prompts are trained on, too, and not only answers.",
    "eval_steps": "Steps between two evaluations; a fifth of the job where this is left out.",
    "sample_prompts": "Prompts that the model answers before the first step and at each evaluation.",
    "sample_max_tokens": "Longest answer to a sample prompt, in tokens.",
    "checkpoint": "How checkpoints are kept. See [Checkpoints](#checkpoints).",
    "placement": "Where the job may run. See [Placement](#placement).",
    "priority": "Higher goes first. Only an admin may go above 0.",
    "deadline": "A time with its zone, for example `2026-12-01T18:00:00+01:00`, or seconds since 1970. Jobs with a deadline that can be met go first.",
}
DATASET_KEYS = {
    "path": "A file of this computer (the command line uploads it), an upload (`sha256:HEX`), a dataset of the hub "
    "(`org/name`, or `org/name@revision`), or a file in a folder that the operator allows.",
    "type": "How a row is read. `auto` decides from the keys of the first row.",
    "split": "Which split of a dataset of the hub.",
    "sha256": "Filled in by the server when the job is submitted.",
    "file_format": "Filled in by the server when the job is submitted.",
    "rows": "Filled in by the server when the job is submitted.",
}
CHECKPOINT_KEYS = {
    "max_interval_s": "Longest time between two saves, in seconds. Trainhop saves more often where a save costs little.",
    "keep": "How many of the newest checkpoints are kept.",
}
PLACEMENT_KEYS = {
    "providers": "Only these providers; empty means any.",
    "accounts": "Only these accounts, by name or id; empty means any.",
    "max_session_s": "Longest session, in seconds.",
}

SETTINGS = {
    "data_dir": "Folder for the database, checkpoints, adapters, keys and tokens.",
    "host": "Address that the server listens on; loopback unless you change it.",
    "port": "Port that the server listens on.",
    "allowed_hosts": "Further host names under which the server may be called.",
    "public_url": "Address under which machines and notebooks elsewhere reach this server.",
    "database_url": "PostgreSQL (`postgresql://...`) instead of the SQLite file in the data folder.",
    "vault_key": "Key that encrypts credentials; `vault.key` (mode 0600) in the data folder where this is not set.",
    "allowed_folders": "Folders of the server's disk that jobs may name. A model there goes only to machines that see it.",
    "trusted_models": "Models that may run their own code.",
    "offline": "Never call the Hugging Face hub; workers on this computer do not either.",
    "drive_endpoint": "An emulator of Google Drive on this computer.",
    "kaggle_endpoint": "An emulator of Kaggle on this computer.",
    "colab_endpoint": "An emulator of Colab on this computer.",
    "hub_endpoint": "An emulator of the Hugging Face hub on this computer.",
    "colab_python": "A Python 3.12 or newer that has `google-colab-cli`, for machines of paid Colab.",
    "max_upload_bytes": "Largest file that the server takes in one upload, in bytes.",
    "local_slots": "Workers that this computer runs at once. It counts at the first start; afterwards change the pool "
    "with `trainhop accounts change this-computer --set slots=2`.",
    "local_session_s": "Longest session on this computer. It counts at the first start, like `TRAINHOP_LOCAL_SLOTS`.",
    "lease_s": "How long a session may be silent before its lease expires.",
    "report_every_s": "Time between two reports of a worker.",
    "start_grace_s": "How long a launched machine may take until its worker first calls.",
    "stop_grace_s": "How long a session may take to save after it was told to stop.",
    "mtbf_s": "Mean time between failures that the saving interval is computed from.",
    "tick_s": "Time between two rounds of the scheduler.",
    "reconcile_s": "Time between two comparisons of the database with what providers say.",
    "letters_s": "Time between two looks into the Drive mailboxes of notebooks that cannot call the server.",
}
CLIENT_SETTINGS = {
    "TRAINHOP_SERVER_URL": "The server that the command line talks to; the one of the data folder where this is not set.",
    "TRAINHOP_TOKEN": "Your token there; the one in the data folder where this is not set.",
}
