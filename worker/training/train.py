"""The training of one session: choose a backend, load, restore, train, and classify errors."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from worker.agent.hardware import memory_cap
from worker.agent.hardware import probe as probe_hardware
from worker.agent.limits import Part
from worker.shared import causes, checkpoint_file, memory_estimate
from worker.shared.checkpoint_file import ROWS_DIFFER, CheckpointError, OtherRunError
from worker.shared.copies_of_rows import split_rows
from worker.shared.job_spec import JobSpec
from worker.shared.lineage import check_lineage, check_owner
from worker.shared.long_texts import SPLIT
from worker.shared.manifest import Hardware, Recipe
from worker.shared.memory_estimate import Shape
from worker.shared.messages import Phase
from worker.training import base_model, continued, state, unusable
from worker.training.backends import base
from worker.training.data import Rows, check_next_tokens, check_rows, load_rows, rendered_sha256, shares_of
from worker.training.determinism import require_deterministic_kernels
from worker.training.distributed import group_for
from worker.training.encoding import Encoder
from worker.training.encoding_findings import findings
from worker.training.interface import Hooks, PermanentError, Resume, Trained, TrainingJob, UnfitMachineError
from worker.training.library_warnings import hide_expected_warnings
from worker.training.model_limits import ModelLimits
from worker.training.pieces import Pieces
from worker.training.ranks import Group
from worker.training.sampler import MicroBatches, position
from worker.training.untrained import with_trained_tokens

if TYPE_CHECKING:
    from worker.shared.dataset_files import Row
    from worker.training.backends.base import Loaded
    from worker.training.callbacks import SessionCallback
    from worker.training.trainer import StepTrainer

_CPU_TOKENS, _GPU_TOKENS = 2_048, 16_384
"""Maximum tokens per micro-batch if the job sets no size. More would need memory without saving time."""


def train(
    job: TrainingJob,
    hooks: Hooks,
    group: Group | None = None,
    *,
    processes: int | None = None,
    trainer_class: type[StepTrainer] | None = None,
) -> Trained:
    """Run the job's steps from its checkpoint (or the start) until the last one or until `hooks` stops it.

    On a machine with several GPUs it starts a process for each of the others, or as many `processes` as given. `group`
    is given to those processes. `trainer_class` replaces `StepTrainer`.

    Raises `PermanentError`, `UnfitMachineError` or `CheckpointError`, each with one sentence. Raises `OSError` if the
    disk fails.
    """
    unusable.hide()
    with plain_errors(job.spec):
        require_deterministic_kernels()
        hooks.phase(Phase.LOAD)
        with contextlib.nullcontext(group) if group else group_for(job, hooks, processes) as together:
            session = _prepare(job, hooks, together, trainer_class)
            session.trainer.train()
        return session.finish()


def micro_batch_size(spec: JobSpec, hardware: Hardware, shape: Shape | None, backend: str, rows: int) -> int:
    """Rows per forward pass: the job's own value, else the largest divisor of a process's `rows` that fits.

    Each answer of a pair counts as a row. The minimum is one row. Whether one row fits was checked before loading.
    """
    if spec.micro_batch_size and rows % spec.micro_batch_size == 0:
        return spec.micro_batch_size
    if hardware.device == "cuda" and shape is not None:
        free = min(hardware.memory_bytes, torch.cuda.mem_get_info(0)[0])
        return memory_estimate.micro_batch(spec, shape, free, backend=backend, rows=rows, most_tokens=_GPU_TOKENS) or 1
    tokens = _GPU_TOKENS // 4 if hardware.device == "cuda" else _CPU_TOKENS
    return max(n for n in range(1, rows + 1) if n == 1 or (rows % n == 0 and n * spec.sequence_len <= tokens))


def check_memory(spec: JobSpec, hardware: Hardware, shape: Shape, backend: str, free: int) -> None:
    """Raise `UnfitMachineError` with both sizes if the job needs more than `free` bytes of GPU memory.

    The estimate is accurate to 10 %, and a job that might fit is not rejected.
    """
    need = memory_estimate.gpu_bytes(spec, shape, backend=backend, micro_batch=1)
    if need * 0.9 > free:
        raise UnfitMachineError(
            f"{spec.base_model} at sequence_len {spec.sequence_len} needs about {need / 2**30:.1f} GiB "
            f"on {hardware.name}, which has {free / 2**30:.1f} GiB free; "
            "use a larger card, adapter: qlora, or a shorter sequence_len",
            causes.MEMORY,
        )


def _prepare(job: TrainingJob, hooks: Hooks, group: Group, trainer_class: type[StepTrainer] | None) -> SessionCallback:
    hooks.begins(Part.IMPORTS)
    spec, hardware = job.spec, probe_hardware()
    keep_to_the_limit(hardware)
    datasets, start = continued.weights_of(job)
    rows = load_rows(datasets, spec)
    # The checkpoint is read first, so that an invalid one is found before the long load of the model.
    resume = _read_checkpoint(job) if job.resume else None
    hooks.phase(Phase.BOOT)
    hooks.begins(Part.INSTALL)
    if problem := base.install_unsloth(spec.library, hardware, group.world):
        logging.getLogger(__name__).warning("unsloth could not be installed: %s", problem)
    hooks.phase(Phase.LOAD)
    hooks.begins(Part.IMPORTS)
    backend = base.select(spec.library, hardware, group.world)
    backend.import_libraries(hardware)
    from worker.training.callbacks import SessionCallback  # imports transformers and TRL, which the backend has patched
    from worker.training.trainer import StepTrainer, build_trainer

    hide_expected_warnings()
    rows_each = spec.global_batch_size // group.world
    hooks.begins(Part.LOAD)
    folder = job.base_folder or base_model.resolve(spec.base_model)
    shape = Shape.read(folder / "config.json")
    if hardware.device == "cuda" and shape is not None:
        check_memory(spec, hardware, shape, backend.name, min(hardware.memory_bytes, torch.cuda.mem_get_info(0)[0]))
    micro_batch = micro_batch_size(spec, hardware, shape, backend.name, rows_each * spec.method.answers)
    loaded = base.load(backend, spec, folder, hardware, job.trust_remote_code, resume is not None, start)
    hooks.begins(Part.ROWS)
    encoder = Encoder(
        loaded.tokenizer, spec.sequence_len, spec.train_on_inputs, encoding=spec.encoding, rendered_at=spec.rendered_at
    )
    every_row, eval_rows = split_rows(rows, spec)
    pieces = _counted(rows, every_row.tolist(), encoder, spec)
    train_rows = _taught(rows, every_row.tolist(), encoder, spec)
    limits = ModelLimits.of(loaded.model.get_base_model())
    trained = Rows(rows, train_rows, encoder, limits, shares_of(spec, train_rows, pieces), pieces)
    is_whole = not trained.shares and pieces is None
    missing = len(every_row) - len(train_rows) if is_whole else spec.train_rows - trained.epoch_rows
    recipe = _full_recipe(spec, loaded, _rows_sha256(rows, encoder, resume), missing)
    if resume:
        check_lineage(recipe, resume.manifest, job.origin)
    chat = bool(rows[0].messages)
    session = SessionCallback(
        job,
        hooks,
        backend=backend,
        loaded=loaded,
        hardware=hardware,
        recipe=recipe,
        resume=resume,
        encoder=encoder,
        held_out=Rows(rows, eval_rows.tolist(), encoder, limits, pieces=pieces),
        chat=chat,
    )
    batches = MicroBatches(
        rows=trained.epoch_rows,
        seed=spec.seed,
        start_step=session.start_step,
        max_steps=spec.total_steps,
        global_batch=spec.global_batch_size,
        micro_batch=rows_each,
        rank=group.rank,
        world=group.world,
        shares=trained.shares,
    )
    limits.check_prompts(spec, encoder, chat)
    if resume:  # the hash of the rows proves that they were checked before the first step
        check_next_tokens(trained, resume.manifest, spec)
    elif group.rank == 0:  # the other processes wait for it
        limits.check_job(spec)
        check_rows(rows, train_rows, encoder, limits, spec.sequence_len, pieces)
        for finding in findings(encoder, loaded.tokenizer, rows):
            logging.getLogger(__name__).warning("%s", finding)
    kind = trainer_class or StepTrainer
    session.trainer = build_trainer(loaded, spec, trained, batches, micro_batch, group, hardware, job.work_dir, kind)
    session.trainer.add_callback(session)
    return session


def keep_to_the_limit(hardware: Hardware) -> None:
    """Use no more GPU memory than the session may."""
    if hardware.device == "cuda" and (limit := memory_cap()):
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / torch.cuda.get_device_properties(0).total_memory))


def _read_checkpoint(job: TrainingJob) -> Resume:
    assert job.resume is not None
    arrays, manifest = checkpoint_file.load(job.resume)
    check_owner(manifest, job.job, job.origin)
    check_lineage(Recipe.of(job.spec), manifest, job.origin)
    expected = position(manifest.step, job.spec.global_batch_size, manifest.recipe.epoch_rows)
    if (manifest.epoch, manifest.index) != expected:
        raise CheckpointError(
            f"the checkpoint's data position {(manifest.epoch, manifest.index)} does not match its "
            f"step, expected {expected}"
        )
    return Resume(arrays=arrays, manifest=manifest)


def _rows_sha256(rows: Sequence[Row], encoder: Encoder, resume: Resume | None) -> str | None:
    """Hash of the rendered rows.

    A running job of an older version is not rejected for rows that it may never reach.
    """
    try:
        return rendered_sha256(rows, encoder)
    except PermanentError as error:
        if resume is None:
            raise
        if resume.manifest.recipe.rows_sha256 is not None:
            raise OtherRunError(f"{ROWS_DIFFER} ({error})") from error
        return None


def _counted(rows: list[Row], training: list[int], encoder: Encoder, spec: JobSpec) -> Pieces | None:
    """The pieces of the job's rows. None where texts are cut off."""
    pieces = Pieces.of(rows, spec, encoder)
    if pieces is not None:
        pieces.check(spec, training)
        logging.getLogger(__name__).warning(
            "%d of %d rows to train on are texts longer than sequence_len and are split: together %d pieces.",
            pieces.longer(training),
            len(training),
            sum(map(pieces.count, training)),
        )
    return pieces


def _taught(rows: list[Row], chosen: list[int], encoder: Encoder, spec: JobSpec) -> list[int]:
    """The rows that the job trains on. A job of the first encoding began with all of them and keeps them."""
    if spec.encoding is None and spec.rl is None:
        return chosen
    taught = with_trained_tokens(rows, chosen, encoder)
    if len(taught) < len(chosen):
        logging.getLogger(__name__).warning(
            "%d of %d rows have no trained token within sequence_len and are left out (the first is row %d). "
            "Set a larger sequence_len, shorten the text before their answers, or train on a turn of them.",
            len(chosen) - len(taught),
            len(chosen),
            min(set(chosen).difference(taught)) + 1,
        )
    return taught


def _full_recipe(spec: JobSpec, loaded: Loaded, rows_sha256: str | None, untrained_rows: int) -> Recipe:
    known_once_loaded = {
        "base_sha256": loaded.base_sha256,
        "tokenizer_sha256": loaded.tokenizer_sha256,
        "parameters_sha256": state.parameters_sha256(loaded.model),
        "trainable_dtype": "float32",
        "rows_sha256": rows_sha256,
        "untrained_rows": untrained_rows if _leaves_out(spec) else None,
    }
    return Recipe.of(spec).model_copy(update=known_once_loaded)


def _leaves_out(spec: JobSpec) -> bool:
    """Whether an epoch may have more or fewer rows than the job file says."""
    return bool(spec.encoding is not None or spec.rl or spec.dataset_repeats or spec.excess_length_strategy == SPLIT)


@contextlib.contextmanager
def plain_errors(spec: JobSpec) -> Iterator[None]:
    """Convert errors of the machine to `UnfitMachineError`."""
    doing, smaller = ("training", "micro_batch_size") if spec.evaluation is None else ("evaluating", "max_new_tokens")
    too_large = (
        f"this machine ran out of memory {doing} {spec.base_model} at sequence_len {spec.sequence_len}; "
        f"set a smaller {smaller} or use a larger machine"
    )
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UnfitMachineError(too_large, causes.MEMORY) from error
    except RuntimeError as error:
        text = str(error)
        if "not enough memory" in text or "can't allocate memory" in text:
            raise UnfitMachineError(too_large, causes.MEMORY) from error
        if "CUDA error" in text or "no kernel image" in text:
            failed = f"the GPU of this machine failed: {text.splitlines()[0]}; run the job on another machine"
            raise UnfitMachineError(failed, causes.GPU) from error
        raise
