"""TRL's SFTTrainer with our sample order and without its own files, logs and progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from worker.training.data import Rows, checksum, collate, row_crc, trained_tokens
from worker.training.determinism import allow_nondeterministic_kernels, lacks_deterministic_kernel
from worker.training.encoding import Example
from worker.training.evaluation import pad_id_of
from worker.training.interface import PermanentError
from worker.training.loraplus import Rates, parameter_groups, rates_of
from worker.training.loss import add_summed_loss
from worker.training.methods import method_of
from worker.training.methods.interface import Method
from worker.training.module_state import ModuleState
from worker.training.neftune import EmbeddingNoise
from worker.training.sampler import MicroBatches
from worker.training.state import Run, capture_rng, restore_rng, trainable

if TYPE_CHECKING:
    from worker.shared.job_spec import JobSpec
    from worker.shared.manifest import Hardware
    from worker.training.backends.base import Loaded
    from worker.training.ranks import Group


class StepTrainer(SFTTrainer):
    """Trains on `batches`, each of which is a whole update, and records what the update consisted of.

    For the library's loop an update is one step without accumulation. `training_step` divides it into micro-batches,
    sums the gradients of several processes, and retries with smaller micro-batches when memory runs out.
    """

    rows: Rows
    batches: MicroBatches
    method: Method
    micro_batch: int
    pad_id: int
    longest: int
    """Maximum tokens of a row."""
    group: Group
    optimizer: Any
    lr_scheduler: Any
    step_loss: float = 0.0
    step_tokens: int = 0
    step_checksum: int = 0
    step_grad_norm: float = 0.0
    step_learning_rate: float = 0.0
    is_over: bool = False
    """Whether the job has ended before the first step of this session."""
    numerics: int | None = None
    """The job's `numerics`."""
    rates: Rates | None = None
    """The rates of LoRA+, if the job has some."""
    noise: EmbeddingNoise | None = None
    step_metrics: dict[str, float]
    """What the method says of the last update besides its loss."""
    frozen: Mapping[str, torch.nn.Parameter]
    """The adapter that the job continues from, if the method compares with it. Otherwise empty."""
    _before: ModuleState | None = None
    _beginning: tuple[Any, Any]
    lower: Callable[[str], None] | None = None
    """Called with the reason when the run stops being exact."""

    def get_train_dataloader(self) -> Any:
        """A loader of our batches, with its own generator.

        Each pass would otherwise draw a seed from the global generator.
        """
        return torch.utils.data.DataLoader(
            self.rows, batch_sampler=_Unless(self), collate_fn=list, generator=torch.Generator()
        )

    def training_step(self, model: Any, inputs: list[Example], num_items_in_batch: Any = None) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of one update, whose loss is that of the job's method over the global batch.

        When memory runs out, the update restarts with half the micro-batch and the same random numbers, and the session
        keeps that size. If an operation has no deterministic kernel, the update restarts with non-deterministic ones
        allowed. Both happen in all processes if they happen in one. Raises `torch.OutOfMemoryError` if a single row
        does not fit.
        """
        model.train()
        self.group.begin_step(self.state.global_step)
        if self.noise is not None:
            self.noise.step = self.state.global_step
        counted = self.group.sum([trained_tokens(inputs), sum(len(s.input_ids) for e in inputs for s in e.sides)])
        self.step_tokens = int(counted[1])
        self.step_checksum = checksum(self.group.gather([row_crc(example) for example in inputs]))
        self.step_learning_rate = float(self.optimizer.param_groups[0]["lr"])
        rng, before = capture_rng(), ModuleState(model, self._before)
        self._before, self._beginning = before, rng
        while (loss := self.method.update(self, model, inputs, max(1.0, counted[0]))) is None:
            model.zero_grad(set_to_none=True)
            self.rewind()
        self.group.sum_gradients(model)
        self.step_loss = self.group.sum([float(loss)])[0]
        return loss.to(self.args.device)

    def rewind(self) -> None:
        """Put random generators and the model's own state back to the beginning of the update."""
        assert self._before is not None
        self._before.put_back()
        restore_rng(*self._beginning)

    def parts(self, examples: Sequence[Example]) -> Iterator[tuple[int, Sequence[Example]]]:
        """The examples in micro-batches, each with the place of its first one."""
        for begin in range(0, len(examples), self.micro_batch):
            yield begin, examples[begin : begin + self.micro_batch]

    def attempt(self, work: Callable[[], None]) -> bool:
        """Do the work. False if any process of the group has to try the update again."""
        full, kernel = False, ""
        try:
            work()
        except torch.OutOfMemoryError:
            # After this block the exception is freed, and with it every tensor of the failed pass.
            full = True
        except RuntimeError as error:
            if not lacks_deterministic_kernel(error):
                raise
            kernel = str(error) or "an operation"
        failures = self.group.gather([full, bool(kernel)])
        full, strict = any(failures[::2]), not any(failures[1::2])
        if not strict:
            self._allow_kernels(kernel or "an operation in another process of this session")
        if full:
            self._halve_micro_batch()
        return strict and not full

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a part of the update's loss."""
        # A model that drops layers at random may drop all that have an adapter.
        if loss.requires_grad:
            self.accelerator.backward(loss)

    def row_before(self) -> Example:
        """The row before the first one of this process in the global batch. The first process gets the last row."""
        samples = self.batches.of_step(self.state.global_step)
        return self.rows[samples[self.group.rank * self.batches.micro_batch - 1]]

    def _allow_kernels(self, why: str) -> None:
        allow_nondeterministic_kernels(why)
        self._tell("an operation of this model has no deterministic kernel on this machine")

    def _halve_micro_batch(self) -> None:
        if self.micro_batch == 1:
            raise torch.OutOfMemoryError("a micro-batch of one row does not fit")
        self.micro_batch = max(n for n in range(1, self.micro_batch) if self.micro_batch % n == 0)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._tell(f"memory ran out, and the micro-batch is now {self.micro_batch}")

    def _tell(self, why: str) -> None:
        if self.lower is not None:
            self.lower(why)

    def summed_rows(self, model: Any, examples: Sequence[Example]) -> torch.Tensor:
        """Loss of a micro-batch, summed over its trained tokens."""
        return self.summed(model, collate(examples, self.pad_id))

    def summed(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Loss of a batch of shape (rows, length), summed over its trained tokens, in the model's current mode."""
        batch = self._prepare_inputs(batch)
        with self.compute_loss_context_manager():
            return model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], summed_labels=batch["labels"]
            )

    def by_token(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The same for each token: (rows, length - 1), and 0 for a token that is not trained on."""
        batch = self._prepare_inputs(batch)
        with self.compute_loss_context_manager():
            return model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], token_labels=batch["labels"]
            )

    def create_optimizer(self, model: Any = None) -> Any:
        """The job's optimiser. With LoRA+ it has more groups, and the first one has the usual rate."""
        if self.optimizer is None and self.rates is not None:
            named: Any = self.model if model is None else model
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, named)
            groups = parameter_groups(named, self.get_decay_parameter_names(named), self.args.weight_decay, self.rates)
            self.optimizer_cls_and_kwargs = kind, {**settings, "params": groups}
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The job's curve. In new jobs the warm-up begins with the first step's share."""
        curve: Any = super().create_scheduler(num_training_steps, optimizer)
        if self.numerics is not None and self.args.lr_scheduler_type != "constant":
            steps = self.args.get_warmup_steps(num_training_steps)
            shares = [partial(warm_up_share, factor, steps) for factor in curve.lr_lambdas]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(curve.optimizer, shares)
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        """Not used. The library would visit all modules to count them."""
        return 0

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm: Any = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.step_grad_norm = float(norm)
        return norm

    def take_step(self) -> dict[str, float]:
        """Values of the last update: loss, gradient norm before clipping, learning rate, tokens and checksum.

        The checksum proves the order of samples. Two runs with equal checksums at every step saw the same tokens.
        """
        if self.noise is not None:
            self.noise.step = None
        values = {
            "loss": self.step_loss,
            "grad_norm": self.step_grad_norm,
            "learning_rate": self.step_learning_rate,
            "tokens": float(self.step_tokens),
            "batch_crc32": float(self.step_checksum),
            **self.step_metrics,
        }
        if torch.cuda.is_initialized():
            values["gpu_peak_bytes"] = float(torch.cuda.max_memory_reserved())
        # TRL stores two numbers per micro-batch for logs that are never written.
        self._metrics["train"].clear()
        self._metrics["eval"].clear()
        return values

    def held_out_loss(self, rows: Rows) -> float | None:
        """The method's loss over validation rows. None if none of them teaches anything."""
        return self.method.held_out_loss(self, self.model, rows)

    def run_state(self) -> Run:
        """The live objects to save or restore, after training has begun."""
        return Run(
            model=self.accelerator.unwrap_model(self.model),
            optimizer=getattr(self.optimizer, "optimizer", self.optimizer),
            scheduler=self.lr_scheduler,
            scaler=self.accelerator.scaler,
        )


class _Unless:
    """The batches of a trainer. None if the job is over when the first one is asked for."""

    def __init__(self, trainer: StepTrainer) -> None:
        self._trainer = trainer

    def __iter__(self) -> Iterator[list[int]]:
        return iter(()) if self._trainer.is_over else iter(self._trainer.batches)


def warm_up_share(factor: Callable[[int], float], warm_up: int, step: int) -> float:
    """The part of the full learning rate in 0-based `step`. `factor` is the library's curve, which begins with 0."""
    return (step + 1) / warm_up if step < warm_up else factor(step)


def build_trainer(
    loaded: Loaded,
    spec: JobSpec,
    rows: Rows,
    batches: MicroBatches,
    micro_batch: int,
    group: Group,
    hardware: Hardware,
    work_dir: Path,
    kind: type[StepTrainer] = StepTrainer,
) -> StepTrainer:
    """A trainer of this `kind` whose trainable parameters are fp32 and hold the values they had before."""
    pad_id = pad_id_of(loaded.model, loaded.tokenizer)
    fresh = {name: parameter.data for name, parameter in trainable(loaded.model).items()}
    trainer = kind(
        model=loaded.model,
        args=_settings(spec, loaded, hardware, work_dir),
        train_dataset=_dummy_dataset(rows),
        processing_class=loaded.tokenizer,
        data_collator=partial(collate, pad_id=pad_id),
    )
    # SFTTrainer rounds the adapter of a quantised model to bf16. The loss scaler cannot unscale that, and a
    # resumed session would continue in fp32.
    for name, parameter in trainable(loaded.model).items():
        parameter.data = fresh[name]
        if parameter.dtype != torch.float32:
            raise PermanentError(f"trainable parameter {name} is {parameter.dtype}, not float32; use another backend")
    trainer.remove_callback(PrinterCallback)
    add_summed_loss(loaded.model.get_base_model(), loaded.hidden)
    trainer.rows, trainer.batches, trainer.micro_batch, trainer.group = rows, batches, micro_batch, group
    trainer.method, trainer.step_metrics = method_of(spec), {}
    trainer.pad_id, trainer.longest, trainer.numerics = pad_id, spec.sequence_len, spec.numerics
    trainer.rates, trainer.frozen = rates_of(spec), loaded.frozen
    if spec.neftune_noise_alpha:
        trainer.noise = EmbeddingNoise(loaded.model, spec.neftune_noise_alpha, spec.seed)
    return trainer


def _dummy_dataset(rows: Rows) -> Dataset:
    """One row for TRL to inspect. The batches come from the trainer's own loader."""
    example = rows[0]
    return Dataset.from_dict({"input_ids": [example.input_ids], "labels": [example.labels]})


def _settings(spec: JobSpec, loaded: Loaded, hardware: Hardware, work_dir: Path) -> SFTConfig:
    on_gpu = hardware.device == "cuda"
    checkpointing = on_gpu and not loaded.own_checkpointing
    settings = SFTConfig(
        output_dir=str(work_dir / "trainer"),
        max_steps=spec.total_steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.lr_scheduler,
        lr_scheduler_kwargs=spec.lr_scheduler_kwargs.given,
        warmup_steps=spec.warmup_ratio if spec.warmup_steps is None else spec.warmup_steps,
        optim=spec.optimizer,
        adam_beta1=spec.adam_beta1,
        adam_beta2=spec.adam_beta2,
        adam_epsilon=spec.adam_epsilon,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        seed=spec.seed,
        bf16=loaded.precision == "bf16",
        fp16=loaded.precision == "fp16",
        use_cpu=not on_gpu,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )
    # With several visible cards the trainer would wrap the model in nn.DataParallel and multiply the batch.
    if settings.n_gpu > 1:
        settings._n_gpu = 1  # noqa: SLF001 - what the trainer itself sets for a model over several cards
    return settings
