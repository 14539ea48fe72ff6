"""TRL's SFTTrainer with our order of samples and without its own files, logs and progress bars."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from worker.training.data import Rows, checksum, collate, row_crc, trained_tokens
from worker.training.determinism import allow_other_kernels
from worker.training.encoding import Example
from worker.training.evaluation import pad_id_of
from worker.training.interface import PermanentError
from worker.training.loss import add_summed_loss
from worker.training.sampler import MicroBatches
from worker.training.state import Run, capture_rng, restore_rng, trainable

if TYPE_CHECKING:
    from worker.shared.messages import Hardware, JobSpec
    from worker.training.backends.base import Loaded
    from worker.training.ranks import Group


class StepTrainer(SFTTrainer):
    """Trains on `batches`, each the whole of an update, and remembers what the update was made of.

    To the library's loop an update is one step without accumulation: cutting it into micro-batches, summing the gradients
    of several processes and trying again with smaller pieces after an out-of-memory is all done in `training_step`.
    """

    rows: Rows
    batches: MicroBatches
    micro_batch: int
    pad_id: int
    group: Group
    optimizer: Any
    lr_scheduler: Any
    step_loss: float = 0.0
    step_tokens: int = 0
    step_checksum: int = 0
    step_grad_norm: float = 0.0
    step_learning_rate: float = 0.0
    _kernels_changed: bool = False

    def get_train_dataloader(self) -> Any:
        """Our batches. The loader has a generator of its own, as each pass would else draw a seed from the global one."""
        return torch.utils.data.DataLoader(
            self.rows, batch_sampler=self.batches, collate_fn=list, generator=torch.Generator()
        )

    def training_step(self, model: Any, inputs: list[Example], num_items_in_batch: Any = None) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of one update: the loss is the mean over all trained tokens of the global batch.

        Out of memory, the update begins anew with half the micro-batch and the same random numbers, and the rest of the
        session stays with that. Where an operation has no deterministic kernel, it begins anew with those that there are.
        Raises `torch.OutOfMemoryError` if a single row does not fit.
        """
        model.train()
        self.group.begin_step(self.state.global_step)
        counted = self.group.sum([trained_tokens(inputs), sum(len(e.input_ids) for e in inputs)])
        self.step_tokens = int(counted[1])
        self.step_checksum = checksum(self.group.gather([row_crc(example) for example in inputs]))
        self.step_learning_rate = float(self.optimizer.param_groups[0]["lr"])
        rng = capture_rng()
        while (loss := self._gradients(model, inputs, max(1.0, counted[0]))) is None:
            self._give_way(model)
            restore_rng(*rng)
        self.group.sum_gradients(model)
        self.step_loss = self.group.sum([float(loss)])[0]
        return loss

    def _gradients(self, model: Any, examples: list[Example], tokens: float) -> torch.Tensor | None:
        """Backward passes of all micro-batches and the loss; None if any process of the group could not do them."""
        loss: torch.Tensor | None = torch.zeros((), device=self.args.device)
        try:
            for begin in range(0, len(examples), self.micro_batch):
                part = self._summed(model, examples[begin : begin + self.micro_batch]) / tokens
                self.accelerator.backward(part)
                loss += part.detach()
        except torch.OutOfMemoryError:
            # Out of this block the exception, and with it every tensor of the failed pass, is gone.
            loss = None
        except RuntimeError as error:
            if "deterministic implementation" not in str(error):
                raise
            allow_other_kernels(str(error))
            self._kernels_changed, loss = True, None
        return loss if self.group.all(loss is not None) else None

    def _give_way(self, model: Any) -> None:
        model.zero_grad(set_to_none=True)
        if self._kernels_changed:
            self._kernels_changed = False
            return
        if self.micro_batch == 1:
            raise torch.OutOfMemoryError("a micro-batch of one row does not fit")
        self.micro_batch = max(n for n in range(1, self.micro_batch) if self.micro_batch % n == 0)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _summed(self, model: Any, examples: Sequence[Example]) -> torch.Tensor:
        return self.summed(model, collate(examples, self.pad_id))

    def summed(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Loss of a batch of shape (rows, length), summed over its trained tokens, in the model's current mode."""
        batch = self._prepare_inputs(batch)
        with self.compute_loss_context_manager():
            return model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], summed_labels=batch["labels"]
            )

    def floating_point_ops(self, inputs: Any) -> int:
        """Never read; the library would walk through all modules to count them."""
        return 0

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm: Any = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.step_grad_norm = float(norm)
        return norm

    def take_step(self) -> dict[str, float]:
        """Loss, gradient norm before clipping, learning rate, tokens and a checksum of what the update just done was made of.

        The checksum proves the order of samples: two runs with equal checksums at every step saw the same tokens.
        """
        values = {
            "loss": self.step_loss,
            "grad_norm": self.step_grad_norm,
            "learning_rate": self.step_learning_rate,
            "tokens": float(self.step_tokens),
            "batch_crc32": float(self.step_checksum),
        }
        if torch.cuda.is_initialized():
            values["gpu_peak_bytes"] = float(torch.cuda.max_memory_reserved())
        # TRL keeps two numbers per micro-batch for logs that are never written.
        self._metrics["train"].clear()
        self._metrics["eval"].clear()
        return values

    def summed_loss(self, batch: dict[str, torch.Tensor]) -> float:
        """The same as a number, for looking at the model without training it."""
        return float(self.summed(self.model, batch))

    def run_state(self) -> Run:
        """The live objects to save or restore, once training has begun."""
        return Run(
            model=self.accelerator.unwrap_model(self.model),
            optimizer=getattr(self.optimizer, "optimizer", self.optimizer),
            scheduler=self.lr_scheduler,
            scaler=self.accelerator.scaler,
        )


def build_trainer(
    loaded: Loaded,
    spec: JobSpec,
    rows: Rows,
    batches: MicroBatches,
    micro_batch: int,
    group: Group,
    hardware: Hardware,
    work_dir: Path,
) -> StepTrainer:
    """A trainer whose trainable parameters are fp32 and hold the values they had before."""
    pad_id = pad_id_of(loaded.model, loaded.tokenizer)
    fresh = {name: parameter.data for name, parameter in trainable(loaded.model).items()}
    trainer = StepTrainer(
        model=loaded.model,
        args=_settings(spec, loaded, hardware, work_dir),
        train_dataset=_stand_in(rows),
        processing_class=loaded.tokenizer,
        data_collator=partial(collate, pad_id=pad_id),
    )
    # SFTTrainer has rounded the adapter of a quantised model to bf16: the loss scaler cannot unscale that, and a
    # resumed session would go on in fp32.
    for name, parameter in trainable(loaded.model).items():
        parameter.data = fresh[name]
        if parameter.dtype != torch.float32:
            raise PermanentError(f"trainable parameter {name} is {parameter.dtype}, not float32; use another backend")
    trainer.remove_callback(PrinterCallback)
    add_summed_loss(loaded.model.get_base_model(), loaded.hidden)
    trainer.rows, trainer.batches, trainer.micro_batch, trainer.group = rows, batches, micro_batch, group
    trainer.pad_id = pad_id
    return trainer


def _stand_in(rows: Rows) -> Dataset:
    """One row for TRL to look at; the batches come from the trainer's own loader."""
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
        warmup_steps=spec.warmup_ratio,
        optim=spec.optimizer,
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
