"""TRL's SFTTrainer with our order of samples and without its own files, logs and progress bars."""

from __future__ import annotations

import zlib
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from worker.training.data import IGNORE, Rows, collate
from worker.training.job import PermanentError
from worker.training.sampler import MicroBatches
from worker.training.state import Run, trainable
from worker.training.telemetry import pad_id_of

if TYPE_CHECKING:
    from worker.protocol import Hardware, JobSpec
    from worker.training.backends import Loaded


class StepTrainer(SFTTrainer):
    """Trains on `batches` in order and remembers what each update was made of."""

    rows: Rows
    batches: MicroBatches
    optimizer: Any
    lr_scheduler: Any
    step_loss: torch.Tensor | float = 0.0
    step_tokens: int = 0
    step_checksum: int = 0
    step_grad_norm: float = 0.0
    step_learning_rate: float = 0.0

    def get_train_dataloader(self) -> Any:
        """Our batches. The loader has a generator of its own, as each pass would else draw a seed from the global one."""
        return torch.utils.data.DataLoader(
            self.rows,
            batch_sampler=self.batches,
            collate_fn=partial(collate, pad_id=pad_id_of(self.processing_class)),
            generator=torch.Generator(),
        )

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One micro-batch; its loss is its share of the mean over all trained tokens of the global batch."""
        self.step_tokens += int(inputs["attention_mask"].sum())
        self.step_checksum = zlib.crc32(inputs["input_ids"].cpu().numpy().tobytes(), self.step_checksum)
        self.step_learning_rate = float(self.optimizer.param_groups[0]["lr"])
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.step_loss = self.step_loss + loss
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss; without triton, which TRL's fused head is written in, the same sum from the plain logits."""
        if self._fused:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"][:, 1:]
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        logits = outputs.logits[:, :-1].float()
        summed = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        tokens = labels.ne(IGNORE).sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        # A batch with nothing to train is a zero, not 0 / 0.
        loss = summed / tokens.clamp(min=1)
        return (loss, outputs) if return_outputs else loss

    @cached_property
    def _fused(self) -> bool:
        return self.args.device.type == "cuda" and find_spec("triton") is not None

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm: Any = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.step_grad_norm = float(norm)
        return norm

    def take_step(self) -> dict[str, float]:
        """Loss, gradient norm before clipping, learning rate, tokens and a checksum of what the update just done was made of.

        The checksum proves the order of samples: two runs with equal checksums at every step saw the same tokens.
        """
        values = {
            "loss": float(self.step_loss),
            "grad_norm": self.step_grad_norm,
            "learning_rate": self.step_learning_rate,
            "tokens": float(self.step_tokens),
            "batch_crc32": float(self.step_checksum),
        }
        self.step_loss, self.step_tokens, self.step_checksum = 0.0, 0, 0
        # TRL keeps two numbers per micro-batch for logs that are never written.
        self._metrics["train"].clear()
        self._metrics["eval"].clear()
        return values

    def summed_loss(self, batch: dict[str, torch.Tensor]) -> float:
        """Loss of a batch of shape (rows, length), summed over its trained tokens, in the model's current mode."""
        inputs = self._prepare_inputs(batch)
        with self.compute_loss_context_manager():
            return float(self.compute_loss(self.model, inputs, num_items_in_batch=torch.tensor(1)))

    def run_state(self) -> Run:
        """The live objects to save or restore, once training has begun."""
        return Run(
            model=self.accelerator.unwrap_model(self.model),
            optimizer=getattr(self.optimizer, "optimizer", self.optimizer),
            scheduler=self.lr_scheduler,
            scaler=self.accelerator.scaler,
        )


def build_trainer(
    loaded: Loaded, spec: JobSpec, rows: Rows, batches: MicroBatches, hardware: Hardware, work_dir: Path
) -> StepTrainer:
    """A trainer whose trainable parameters are fp32 and hold the values they had before."""
    fresh = {name: parameter.data for name, parameter in trainable(loaded.model).items()}
    trainer = StepTrainer(
        model=loaded.model,
        args=_settings(spec, batches, hardware, loaded.precision, work_dir),
        train_dataset=_stand_in(rows),
        processing_class=loaded.tokenizer,
        data_collator=partial(collate, pad_id=pad_id_of(loaded.tokenizer)),
    )
    # SFTTrainer has rounded the adapter of a quantised model to bf16: the loss scaler cannot unscale that, and a
    # resumed session would go on in fp32.
    for name, parameter in trainable(loaded.model).items():
        parameter.data = fresh[name]
        if parameter.dtype != torch.float32:
            raise PermanentError(f"trainable parameter {name} is {parameter.dtype}, not float32; use another backend")
    trainer.remove_callback(PrinterCallback)
    # TRL's loss divides by the tokens of the global batch whether or not the model's own loss could.
    trainer.model_accepts_loss_kwargs = True
    trainer.rows, trainer.batches = rows, batches
    return trainer


def _stand_in(rows: Rows) -> Dataset:
    """One row for TRL to look at; the batches come from the trainer's own loader."""
    example = rows[0]
    return Dataset.from_dict({"input_ids": [example.input_ids], "labels": [example.labels]})


def _settings(spec: JobSpec, batches: MicroBatches, hardware: Hardware, precision: str, work_dir: Path) -> SFTConfig:
    on_gpu = hardware.device == "cuda"
    settings = SFTConfig(
        output_dir=str(work_dir / "trainer"),
        max_steps=spec.total_steps,
        per_device_train_batch_size=batches.micro_batch,
        gradient_accumulation_steps=batches.accumulation,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.lr_scheduler,
        warmup_steps=spec.warmup_ratio,
        optim=spec.optimizer,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        seed=spec.seed,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not on_gpu,
        gradient_checkpointing=on_gpu,
        gradient_checkpointing_kwargs={"use_reentrant": False} if on_gpu else None,
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
