"""The stages of one training, in their order: device, base, pictures, training, files."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any

import torch

from job_contract.request import TrainingRequest
from trainer.base_model import find_base, load_noise_scheduler
from trainer.checkpoint import load_newest, save_checkpoint
from trainer.device import Device, find_device
from trainer.errors import OutOfMemoryError
from trainer.export import TrainingFacts, export_weights
from trainer.finished import FinishedTraining
from trainer.finishing import Extras
from trainer.interrupt import Interrupt
from trainer.lora import attach_lora
from trainer.metrics import MetricsFile
from trainer.objective import make_objective
from trainer.optimizer import AdapterOptimizer, learning_rates
from trainer.plan import TrainingPlan
from trainer.preparation import Prepared, prepare, sample_prompts
from trainer.processes import ProcessGroup
from trainer.randomness import steps_per_epoch
from trainer.reporting import EpochReporter
from trainer.samples import Sampler
from trainer.settings import TrainerSettings
from trainer.style_folder import StyleFolder
from trainer.training import Parts, Training

logger = logging.getLogger(__name__)


def train_style(
    request: TrainingRequest,
    plan: TrainingPlan,
    settings: TrainerSettings,
    folder: StyleFolder,
    fingerprint: str,
    interrupt: Interrupt,
) -> tuple[FinishedTraining, list[str]]:
    """Train, from the newest checkpoint of this training or from the beginning, and write all files.

    Returns what the weights file says, and notes on what failed beside the weights.

    Raises:
        TrainerError: it ended badly; the error says how.
        StopRequested: a signal came; a checkpoint is saved if a step was done.
    """
    with _out_of_memory_explained(), _temporary_images(folder):
        device = find_device(settings.mixed_precision, require_cuda=settings.require_cuda)
        logger.info(
            "Style %s: %d images, %d epochs, on %s",
            request.style_id,
            len(request.image_paths),
            plan.epochs,
            device.describe(),
        )
        base = find_base(plan.base_model, plan.base_model_revision, device.dtype)
        prompts = sample_prompts(settings.sample_prompts, request.trigger_word)
        workers = Workers(count, settings.mixed_precision, cuda=device.is_cuda)
        prepared = prepare(request, plan, prompts, base, device, folder.images, interrupt)

        parts = put_together(plan, prepared.unet, prepared.examples, base, device)
        sampler = None
        if prompts:
            sampler = Sampler(
                parts.unet,
                parts.adapter,
                base,
                prepared.prompt_texts,
                parts.examples.texts[-1:],
                steps=settings.sample_steps or (20 if device.is_cuda else 4),
                guidance=settings.sample_guidance,
                seed=plan.seed,
                resolution=plan.resolution,
            )
        extras = Extras(folder, sampler, prompts, every_epochs=settings.sample_every_epochs)
        metrics = MetricsFile(folder.metrics)
        training = Training(
            parts,
            plan,
            fingerprint=sha256(f"{fingerprint}{parts.examples.fingerprint}".encode()).hexdigest(),
            group=workers.group,
            interrupt=interrupt,
            checkpoint_every=settings.checkpoint_every_epochs,
            save=partial(save_checkpoint, folder.checkpoints, keep=settings.checkpoints_kept),
            on_epoch=EpochReporter(metrics, plan.epochs),
            between_epochs=extras.between_epochs,
            peak_memory_mib=device.peak_memory_mib,
        )
        checkpoint = _resume(training, folder, metrics)
        with workers.training(plan, base, parts.examples, checkpoint):
            training.train()

        facts = TrainingFacts(
            style_id=str(request.style_id),
            trigger_word=request.trigger_word,
            captions=prepared.captions,
            steps=total_steps(plan, parts.examples),
            images=len(request.image_paths),
            prediction_type=parts.objective.prediction_type,
            loss=training.loss,
            fingerprint=fingerprint,
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        folder.model_card.unlink(missing_ok=True)
        export_weights(folder.weights, parts.adapter.split(parts.optimizer.master), plan, facts)
        logger.info("Saved %s", folder.weights)
        extras.finish(plan, facts, metrics.read())
    return FinishedTraining(plan.epochs, facts.loss), extras.notes


def _resume(training: Training, folder: StyleFolder, metrics: MetricsFile) -> None:
    """Go on from the newest checkpoint of this training; without one, clear away what another one left."""
    checkpoint = load_newest(folder.checkpoints, training.fingerprint)
    if checkpoint:
        training.restore(checkpoint)
        metrics.keep_until(checkpoint.epoch)
        logger.info("Going on from the checkpoint %s (step %d)", checkpoint.name, checkpoint.step)
        return
    if folder.checkpoints.exists():
        logger.info("No checkpoint fits this request, these settings and these pictures: starting afresh.")
        shutil.rmtree(folder.checkpoints)
    metrics.keep_until(0)


@contextmanager
def _out_of_memory_explained() -> Iterator[None]:
    """Turn running out of memory anywhere outside the steps, which have a way out, into a sentence."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(
            "The memory does not hold the base model and one picture; use a GPU with at least 6 GB that "
            "nothing else uses, and give the container at least 8 GiB."
        ) from error


@contextmanager
def _temporary_images(folder: StyleFolder) -> Iterator[None]:
    """Remove the downloaded pictures at the end, and those that a killed run left at the beginning."""
    shutil.rmtree(folder.images, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder.images, ignore_errors=True)
