"""Supervised fine-tuning of one session: choose a backend, load, restore, train, and name errors by whose they are."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from worker.agent.hardware import memory_cap
from worker.agent.hardware import probe as probe_hardware
from worker.agent.limits import Part
from worker.shared import checkpoint_file, memory_estimate
from worker.shared.checkpoint_file import CheckpointError
from worker.shared.lineage import check_lineage, check_owner
from worker.shared.memory_estimate import Shape
from worker.shared.messages import Hardware, JobSpec, Phase, Recipe
from worker.training import base_model, state, unusable
from worker.training.backends import base
from worker.training.data import Rows, check_rows, load_rows
from worker.training.determinism import insist_on_determinism
from worker.training.distributed import group_for
from worker.training.encoding import Encoder
from worker.training.interface import Hooks, Resume, Trained, TrainingJob, UnfitMachineError
from worker.training.model_limits import Room
from worker.training.ranks import Group
from worker.training.sampler import MicroBatches, position, split

if TYPE_CHECKING:
    from worker.training.backends.base import Loaded
    from worker.training.callbacks import Session

_CPU_TOKENS, _GPU_TOKENS = 2_048, 16_384
"""Most tokens of one micro-batch where the job does not ask for a size; more would take memory and save no time."""


def train(job: TrainingJob, hooks: Hooks, group: Group | None = None) -> Trained:
    """Run the job's steps from its checkpoint (or the start) until the last one or until `hooks` says stop.

    On a machine with several GPUs it starts a process for each of the others; `group` is given to those.

    Raises `PermanentError`, `UnfitMachineError` or `CheckpointError`, each with one sentence; `OSError` if the disk fails.
    """
    unusable.hide()
    with _plain_errors(job.spec):
        insist_on_determinism()
        hooks.phase(Phase.LOAD)
        with contextlib.nullcontext(group) if group else group_for(job, hooks) as together:
            session = _prepare(job, hooks, together)
            session.trainer.train()
        return session.finish()


def micro_batch_size(spec: JobSpec, hardware: Hardware, shape: Shape | None, backend: str, rows: int) -> int:
    """Rows per forward pass: the job's wish, else the largest divisor of a process's `rows` that suits the machine.

    A single row is always tried: whether there is room for it has been asked before loading.
    """
    if spec.micro_batch_size and rows % spec.micro_batch_size == 0:
        return spec.micro_batch_size
    if hardware.device == "cuda" and shape is not None:
        room = min(hardware.memory_bytes, torch.cuda.mem_get_info(0)[0])
        return memory_estimate.micro_batch(spec, shape, room, backend=backend, rows=rows, most_tokens=_GPU_TOKENS) or 1
    tokens = _GPU_TOKENS // 4 if hardware.device == "cuda" else _CPU_TOKENS
    return max(n for n in range(1, rows + 1) if n == 1 or (rows % n == 0 and n * spec.sequence_len <= tokens))


def check_room(spec: JobSpec, hardware: Hardware, shape: Shape, backend: str, room: int) -> None:
    """Raise `UnfitMachineError`, with both figures, before loading what `room` bytes of GPU memory cannot hold.

    The estimate is good to a tenth, and nothing that might fit is refused.
    """
    need = memory_estimate.gpu_bytes(spec, shape, backend=backend, micro_batch=1)
    if need * 0.9 > room:
        raise UnfitMachineError(
            f"{spec.base_model} at sequence_len {spec.sequence_len} needs about {need / 2**30:.1f} GiB on {hardware.name}, "
            f"which has {room / 2**30:.1f} GiB free; use a larger card, adapter: qlora, or a shorter sequence_len"
        )


def _prepare(job: TrainingJob, hooks: Hooks, group: Group) -> Session:
    hooks.begins(Part.IMPORTS)
    spec, hardware = job.spec, probe_hardware()
    _keep_to_the_limit(hardware)
    rows = load_rows(job.datasets, spec)
    # The checkpoint comes before the model: a wrong one is found in a moment instead of after a long load.
    resume = _read_checkpoint(job) if job.resume else None
    hooks.phase(Phase.BOOT)
    hooks.begins(Part.INSTALL)
    if problem := base.install_unsloth(spec.backend, hardware, group.world):
        logging.getLogger(__name__).warning("unsloth could not be installed: %s", problem)
    hooks.phase(Phase.LOAD)
    hooks.begins(Part.IMPORTS)
    backend = base.select(spec.backend, hardware, group.world)
    backend.bring_in(hardware)
    from worker.training.callbacks import Session  # transformers and TRL come after what patches them
    from worker.training.trainer import build_trainer

    _quiet()
    rows_each = spec.global_batch_size // group.world
    hooks.begins(Part.LOAD)
    folder = job.base_folder or base_model.resolve(spec.base_model)
    shape = Shape.read(folder / "config.json")
    if hardware.device == "cuda" and shape is not None:
        check_room(spec, hardware, shape, backend.name, min(hardware.memory_bytes, torch.cuda.mem_get_info(0)[0]))
    micro_batch = micro_batch_size(spec, hardware, shape, backend.name, rows_each)
    loaded = base.load(backend, spec, folder, hardware, job.trust_remote_code, resume is not None)
    recipe = _full_recipe(spec, loaded)
    if resume:
        check_lineage(recipe, resume.manifest, job.origin)
    encoder = Encoder(loaded.tokenizer, spec.sequence_len, spec.train_on_inputs)
    chat, room = bool(rows[0].messages), Room.of(loaded.model.get_base_model())
    train_rows, eval_rows = split(len(rows), spec.eval_rows, spec.seed)
    session = Session(
        job,
        hooks,
        backend=backend,
        loaded=loaded,
        hardware=hardware,
        recipe=recipe,
        resume=resume,
        encoder=encoder,
        held_out=Rows(rows, eval_rows.tolist(), encoder, room),
        chat=chat,
    )
    batches = MicroBatches(
        rows=len(train_rows),
        seed=spec.seed,
        start_step=session.start_step,
        max_steps=spec.total_steps,
        global_batch=spec.global_batch_size,
        micro_batch=rows_each,
        rank=group.rank,
        world=group.world,
    )
    trained = Rows(rows, train_rows.tolist(), encoder, room)
    room.check_prompts(spec, encoder, chat)
    if not resume:  # a job that has come far is never refused for what it might meet
        room.check_job(spec)
        check_rows(rows, trained, encoder, spec.sequence_len)
    session.trainer = build_trainer(loaded, spec, trained, batches, micro_batch, group, hardware, job.work_dir)
    session.trainer.add_callback(session)
    return session


def _keep_to_the_limit(hardware: Hardware) -> None:
    if hardware.device == "cuda" and (limit := memory_cap()):
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / torch.cuda.get_device_properties(0).total_memory))


def _read_checkpoint(job: TrainingJob) -> Resume:
    assert job.resume is not None
    arrays, manifest = checkpoint_file.load(job.resume)
    check_owner(manifest, job.job, job.origin)
    check_lineage(Recipe.of(job.spec), manifest, job.origin)
    expected = position(manifest.step, job.spec.global_batch_size, job.spec.train_rows)
    if (manifest.epoch, manifest.index) != expected:
        raise CheckpointError(
            f"the checkpoint's data position {(manifest.epoch, manifest.index)} is not that of its step, {expected}"
        )
    return Resume(arrays=arrays, manifest=manifest)


def _full_recipe(spec: JobSpec, loaded: Loaded) -> Recipe:
    known_once_loaded = {
        "base_sha256": loaded.base_sha256,
        "tokenizer_sha256": loaded.tokenizer_sha256,
        "parameters_sha256": state.parameters_sha256(loaded.model),
        "trainable_dtype": "float32",
    }
    return Recipe.of(spec).model_copy(update=known_once_loaded)


def _quiet() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*Paged optimizers are not supported on CPU.*")


@contextlib.contextmanager
def _plain_errors(spec: JobSpec) -> Iterator[None]:
    """Turn what a machine cannot do into `UnfitMachineError`."""
    too_large = (
        f"this machine ran out of memory training {spec.base_model} at sequence_len {spec.sequence_len}; "
        "set a smaller micro_batch_size or use a larger machine"
    )
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UnfitMachineError(too_large) from error
    except RuntimeError as error:
        text = str(error)
        if "not enough memory" in text or "can't allocate memory" in text:
            raise UnfitMachineError(too_large) from error
        if "CUDA error" in text or "no kernel image" in text:
            raise UnfitMachineError(f"the GPU of this machine failed: {text.splitlines()[0]}") from error
        raise
