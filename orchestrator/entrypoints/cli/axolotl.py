"""Translates axolotl's configuration files into job files. What has no counterpart is named, never dropped unsaid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from orchestrator.entrypoints.cli.axolotl_columns import READ_OF_COLUMNS, columns_of
from worker.shared.dataset_spec import Role, TrainedEnds
from worker.shared.methods import METHODS, MethodKeys, unknown
from worker.shared.own_template import TemplateName
from worker.shared.row_keys import THOUGHTS, TRAINING
from worker.shared.schedules import Schedule
from worker.shared.spec_errors import REFUSED

_NAMES = """
    lora_r lora_alpha lora_dropout lora_layers_to_transform lora_target_parameters peft_use_rslora peft_use_dora
    peft_trainable_token_indices sequence_len num_epochs max_steps learning_rate loraplus_lr_ratio
    loraplus_lr_embedding lr_scheduler_kwargs warmup_ratio warmup_steps adam_beta1 adam_beta2 adam_epsilon max_grad_norm
    weight_decay neftune_noise_alpha seed val_set_size train_on_inputs early_stopping_patience load_best_model_at_end
    hub_model_id chat_template_jinja tokens added_tokens_overrides lora_model_dir
"""
SAME = (*_NAMES.split(), *MethodKeys.model_fields)
"""Keys with the same name and meaning."""
_OPTIMIZERS = {
    "adamw_torch": "adamw_torch",
    "adamw_torch_fused": "adamw_torch",
    "adamw_hf": "adamw_torch",
    "paged_adamw_32bit": "adamw_torch",
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
_PLAIN_STARTS = frozenset({"true", "gaussian", "orthogonal"})
"""Ways to begin an adapter that leave the base model as it is."""
_ROWS = {"alpaca": "alpaca", "chat_template": "messages", "sharegpt": "sharegpt", "completion": "text"}
_TRANSLATED = """
    base_model revision_of_model datasets adapter load_in_4bit lora_target_modules lora_target_linear micro_batch_size
    gradient_accumulation_steps batch_size chat_template optimizer lr_scheduler cosine_min_lr_ratio eval_steps
    noisy_embedding_alpha peft_init_lora_weights loftq_config metric_for_best_model greater_is_better
    excess_length_strategy
"""
_READ = frozenset((*SAME, *_TRANSLATED.split()))
_READ_OF_ROWS = frozenset(
    ("path", "type", "split", "train_on_split", "data_files", "ds_type", "name", *READ_OF_COLUMNS)
)
_USUAL_FIELDS: dict[str, tuple[str, ...]] = {
    "message_field_training": TRAINING,
    "field_tools": ("tools",),
    "field_thinking": THOUGHTS,
    "template_thinking_key": THOUGHTS,
}
"""Keys of a dataset that name a key of rows, with the names that are read."""
_OF_TURNS: dict[str, tuple[str, ...]] = {"roles_to_train": get_args(Role), "train_on_eos": get_args(TrainedEnds)}

_MACHINE = "each machine chooses it"
_SAVES = "Trainhop saves by time and resumes by itself"
_REPORTS = "the server keeps metrics and logs"
_FOLLOWS = "it follows from the model"
_BY_MEANING: dict[str, str] = {
    _MACHINE: """
        bf16 fp16 float16 bfloat16 tf32 flash_attention flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_mlp
        xformers_attention sdp_attention eager_attention attn_implementation flex_attention gradient_checkpointing
        gradient_checkpointing_kwargs activation_offloading device device_map max_memory deepspeed fsdp fsdp_config
        fsdp_version ddp ddp_timeout ddp_bucket_cap_mb world_size local_rank dataloader_num_workers
        dataloader_pin_memory dataloader_prefetch_factor dataset_processes dataset_num_proc eval_batch_size
        pad_to_sequence_len low_cpu_mem_usage torch_compile auto_find_batch_size plugins liger_rope liger_rms_norm
        liger_glu_activation liger_layer_norm liger_fused_linear_cross_entropy liger_cross_entropy cut_cross_entropy
        lora_mlp_kernel lora_qkv_kernel lora_o_kernel bnb_config_kwargs use_cpu gc_steps
    """,
    _SAVES: """
        output_dir save_steps saves_per_epoch save_strategy save_total_limit save_safetensors save_only_model
        save_first_step resume_from_checkpoint auto_resume_from_checkpoints dataset_prepared_path
        shuffle_merged_datasets overwrite_output_dir
    """,
    _REPORTS: """
        logging_steps logging_dir report_to use_wandb wandb_project wandb_entity wandb_watch wandb_name wandb_run_id
        wandb_log_model wandb_mode use_tensorboard use_mlflow mlflow_tracking_uri mlflow_experiment_name mlflow_run_name
        use_comet debug strict verbosity profiler_steps include_tokens_per_second push_dataset_to_hub
    """,
    _FOLLOWS: """
        model_type tokenizer_type tokenizer_use_fast tokenizer_legacy tokenizer_config processor_type base_model_config
        is_llama_derived_model is_mistral_derived_model is_falcon_derived_model trust_remote_code type_of_model
    """,
}
_NEEDLESS = {key: words for words, keys in _BY_MEANING.items() for key in keys.split()}

_OTHER = {
    "sample_packing": "rows are not packed: each fills a place of its own, and the loss is the same mean over tokens",
    "eval_sample_packing": "rows are not packed",
    "evals_per_epoch": "set eval_steps, the steps between two evaluations",
    "group_by_length": "rows are drawn at random by seed",
    "special_tokens": "the model's own tokens are used",
    "load_in_8bit": "the model is loaded in 16 bits, or in 4 with adapter: qlora",
    "roles_to_train": f"the roles are {', '.join(get_args(Role))}",
    "train_on_eos": f"it is one of {', '.join(get_args(TrainedEnds))}",
    "message_field_training": f"a turn says it with {' or '.join(TRAINING)}",
    "message_field_training_detail": "a turn is trained on whole, or not",
    "split_thinking": "text between <think> and </think> stays text",
    "train_on_eot": "the token that ends a turn is trained with the turn",
    "test_datasets": "validation rows are a share of the data, see val_set_size",
}


class NotTranslatableError(ValueError):
    """The file asks for another kind of training."""


@dataclass
class Translation:
    """A job file, and one sentence for each key that is not in it."""

    spec: dict[str, Any] = field(default_factory=dict[str, Any])
    different: dict[str, str] = field(default_factory=dict[str, str])
    """Keys without a counterpart: the job trains in another way."""
    needless: dict[str, str] = field(default_factory=dict[str, str])
    """Keys that change nothing of what is learned."""


def translate(config: Mapping[str, Any]) -> Translation:
    """The job file for a configuration. Raises `NotTranslatableError`."""
    given = {str(key): value for key, value in config.items() if value not in (None, "", [], {})}
    _refuse_other_training(given)
    done = Translation()
    spec, model = done.spec, str(given.get("base_model", ""))
    spec["name"] = model.rstrip("/").rpartition("/")[2].lower() or "untitled"
    spec["base_model"] = f"{model}@{given['revision_of_model']}" if "revision_of_model" in given else model
    given_sets = enumerate(_listed(given.get("datasets")))
    known = {} if "rl" in given else _ROWS  # the same words mean other columns there
    spec["datasets"] = [found for number, each in given_sets for found in _datasets(number, each, known, done)]
    if given.get("train_on_inputs"):
        for number, found in enumerate(spec["datasets"]):
            for key in _OF_TURNS.keys() & found.keys():
                done.different[f"datasets[{number}].{key}"] = "train_on_inputs trains on all turns"
                del found[key]
    spec["adapter"] = given["adapter"]
    spec["lora_target_modules"] = _targets(given)
    spec |= {key: given[key] for key in SAME if key in given}
    if isinstance(given.get("warmup_steps"), float):  # transformers takes one below 1 as a share
        spec["warmup_ratio"] = spec.pop("warmup_steps")
    if not spec.keys() & {"num_epochs", "max_steps"}:
        spec["num_epochs"] = 1
    spec |= _batch(given) | _optimiser(given, done) | _schedule(given, done)
    if isinstance(given.get("eval_steps"), int):
        spec["eval_steps"] = given["eval_steps"]
    elif "eval_steps" in given:
        done.different["eval_steps"] = "it is a number of steps here, not a share of them"
    _adapter(given, done)
    _watched(given, done)
    _template(given, done)
    if given.get("excess_length_strategy", "truncate") != "truncate":  # there it is not for texts, which are split
        done.different["excess_length_strategy"] = "rows longer than sequence_len are cut off"
    _name_the_rest(given, done)
    return done


def _template(given: Mapping[str, Any], done: Translation) -> None:
    wanted = given.get("chat_template")
    if wanted in get_args(TemplateName):
        done.spec["chat_template"] = wanted
    elif wanted:
        done.different["chat_template"] = "give its text as chat_template_jinja, or the model's own is used"


def _refuse_other_training(given: Mapping[str, Any]) -> None:
    if (method := given.get("rl")) and method not in METHODS:
        raise NotTranslatableError(f"rl: {unknown(method)}.")
    if given.get("adapter") not in ("lora", "qlora"):
        found = f"adapter: {given['adapter']}" if "adapter" in given else "a file without adapter"
        raise NotTranslatableError(f"{found} is not LoRA or QLoRA. Trainhop trains adapters of these two kinds.")
    if given.get("relora_steps") or given.get("unfrozen_parameters"):
        raise NotTranslatableError("The file trains the model's own weights. Trainhop trains adapters.")
    start = given.get("peft_init_lora_weights")
    if given.get("loftq_config") or (isinstance(start, str) and start.lower() not in _PLAIN_STARTS):
        key = "loftq_config" if given.get("loftq_config") else f"peft_init_lora_weights: {start}"
        raise NotTranslatableError(f"{key} {REFUSED['loftq_config']}.")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _datasets(number: int, given: Any, known: Mapping[str, str], done: Translation) -> list[dict[str, Any]]:
    """A dataset for each of its files. `known` are the types with a counterpart."""
    place = f"datasets[{number}]"
    if not isinstance(given, Mapping):
        raise NotTranslatableError(f"{place} is not a mapping with a path.")
    found: dict[str, Any] = {}
    if kind := _row_format(place, given.get("type"), known, done):
        found["type"] = kind
    if split := given.get("split") or given.get("train_on_split"):
        found["split"] = split
    if given.get("name"):
        found["name"] = given["name"]
    columns, left = columns_of(given, found.get("type", ""))
    found |= columns
    done.different |= {f"{place}.{key}": words for key, words in left.items()}
    found |= _of_turns(place, given, done)
    files = given.get("data_files") or given.get("path")
    return [{"path": path, **found} for path in (files if isinstance(files, list) else [files])]


def _row_format(place: str, kind: Any, known: Mapping[str, str], done: Translation) -> str | None:
    head = kind.partition(":")[0].partition(".")[0] if isinstance(kind, str) else ""
    if head in known:
        if kind not in known:
            done.different[f"{place}.type"] = f"{kind} is read as {known[head]}"
        return known[head]
    if isinstance(kind, Mapping) and known:
        return "text" if kind.get("field") else "alpaca"
    if kind:
        done.different[f"{place}.type"] = "the format is detected from the first row's keys"
    return None


def _of_turns(place: str, given: Mapping[str, Any], done: Translation) -> dict[str, Any]:
    """The keys that say which turns are trained on. Names the others."""
    found: dict[str, Any] = {}
    for key in sorted(given.keys() - _READ_OF_ROWS, key=str):
        if given[key] in (None, "", [], {}, False) or given[key] in _USUAL_FIELDS.get(key, ()):
            continue
        if key in _OF_TURNS and {str(each) for each in _listed(given[key]) or [given[key]]} <= {*_OF_TURNS[key]}:
            found[key] = _listed(given[key]) or [given[key]] if key == "roles_to_train" else given[key]
        else:
            done.different[f"{place}.{key}"] = _OTHER.get(key, "rows are read with the usual names of their format")
    return found


def _targets(given: Mapping[str, Any]) -> Any:
    wanted = given.get("lora_target_modules")
    if given.get("lora_target_linear") or wanted in (None, "all-linear"):
        return "all-linear"
    return wanted


def _adapter(given: Mapping[str, Any], done: Translation) -> None:
    start = given.get("peft_init_lora_weights", True)
    if start is not True and str(start).lower() != "true":
        done.different["peft_init_lora_weights"] = "A is uniform and B zero, PEFT's default"
    if isinstance(given.get("peft_trainable_token_indices"), Mapping):
        del done.spec["peft_trainable_token_indices"]
        done.different |= {"peft_trainable_token_indices": "it is a list of tokens here, for the embedding alone"}
    if "noisy_embedding_alpha" in given:
        done.spec.setdefault("neftune_noise_alpha", given["noisy_embedding_alpha"])


def _watched(given: Mapping[str, Any], done: Translation) -> None:
    """The lowest validation loss is the best here."""
    metric = str(given.get("metric_for_best_model", "eval_loss"))
    if metric not in ("loss", "eval_loss"):
        done.different["metric_for_best_model"] = "the lowest validation loss is the best"
    elif given.get("greater_is_better"):
        done.different["greater_is_better"] = "the lowest validation loss is the best"


def _batch(given: Mapping[str, Any]) -> dict[str, int]:
    """Axolotl counts rows for each GPU and pass, a job all rows of a step."""
    micro = _whole(given, "micro_batch_size")
    whole = (
        _whole(given, "batch_size") if "batch_size" in given else micro * _whole(given, "gradient_accumulation_steps")
    )
    return {"global_batch_size": whole, "micro_batch_size": micro}


def _whole(given: Mapping[str, Any], key: str) -> int:
    value = given.get(key, 1)
    if type(value) is not int or value < 1:
        raise NotTranslatableError(f"{key} must be a whole number, at least 1.")
    return value


def _optimiser(given: Mapping[str, Any], done: Translation) -> dict[str, str]:
    wanted = str(given.get("optimizer", "adamw_torch"))
    known = _OPTIMIZERS.get(wanted)
    if known != wanted:
        done.different["optimizer"] = f"{wanted} becomes {known or 'adamw_torch'}"
    return {"optimizer": known or "adamw_torch"}


def _schedule(given: Mapping[str, Any], done: Translation) -> dict[str, Any]:
    """Axolotl's own default is `cosine`."""
    wanted = str(given.get("lr_scheduler", "cosine"))
    if wanted == "cosine" and "cosine_min_lr_ratio" in given:
        return {
            "lr_scheduler": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": given["cosine_min_lr_ratio"]},
        }
    if "cosine_min_lr_ratio" in given:
        done.different["cosine_min_lr_ratio"] = f"{wanted} has no lowest rate"
    if wanted not in get_args(Schedule):
        done.different["lr_scheduler"] = f"{wanted} becomes cosine"
        wanted = "cosine"
    return {"lr_scheduler": wanted}


def _name_the_rest(given: Mapping[str, Any], done: Translation) -> None:
    for key in sorted(given.keys() - _READ):
        if key in _NEEDLESS:
            done.needless[key] = _NEEDLESS[key]
        elif given[key] is not False:
            done.different[key] = _OTHER.get(key, "has no counterpart")
