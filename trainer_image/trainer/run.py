"""The stages of one training, in their order: device, base, pictures, training, files."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from trainer.assignment import Assignment
from trainer.base_files import identity_of
from trainer.base_model import find_base
from trainer.checkpoint import Checkpoint, discard_checkpoints, load_newest, save_checkpoint
from trainer.device import Device, find_device, first_line, is_device_fault, is_out_of_memory
from trainer.errors import GpuFaultError, OutOfMemoryError, TrainerError
from trainer.export import TrainingFacts, export_weights
from trainer.finished import FinishedTraining
from trainer.finishing import Extras
from trainer.graphed_step import GraphedStep, graph_pays, record_cuda_graph
from trainer.interrupt import Interrupt
from trainer.metrics import MetricsFile
from trainer.parts import Parts, put_together, total_steps
from trainer.pictures import ComingPictures
from trainer.plan import TrainingPlan, checkpoint_fingerprint
from trainer.preparation import Prepared, prepare, sample_prompts
from trainer.reporting import EpochReporter
from trainer.samples import Sampler
from trainer.settings import TrainerSettings
from trainer.style_folder import StyleFolder, is_own
from trainer.training import Hooks, Training
from trainer.workers import Workers

logger = logging.getLogger(__name__)


def train_style(
    assignment: Assignment, pictures: ComingPictures, interrupt: Interrupt
) -> tuple[FinishedTraining, list[str]]:
    """Train, from the newest checkpoint of this training or from the beginning, and write all files.

    Returns what the weights file says, and notes on what failed beside the weights.

    Raises:
        TrainerError: it ended badly; the error says how.
        StopRequested: a signal came; a checkpoint is saved if a step was done.
    """
    request, settings, plan = assignment.request, assignment.settings, assignment.plan
    with _device_failures_explained():
        find = partial(find_device, settings.mixed_precision, deterministic=settings.deterministic)
        device = find(require_cuda=settings.require_cuda)
        count = _process_count(settings.devices, plan.batch_size, device)
        logger.info(
            "Style %s: %d images, %d epochs, on %s%s",
            request.style_id,
            len(request.image_paths),
            plan.epochs,
            f"{count} x " if count > 1 else "",
            device.describe(),
        )
        base = _find_base(plan, device, pictures)
        with Workers(count, find, interrupt, cuda=device.is_cuda) as workers:
            return _train(assignment, pictures, interrupt, device, base, workers)


def _train(
    assignment: Assignment,
    pictures: ComingPictures,
    interrupt: Interrupt,
    device: Device,
    base: Path,
    workers: Workers,
) -> tuple[FinishedTraining, list[str]]:
    request, settings, plan, folder = (
        assignment.request,
        assignment.settings,
        assignment.plan,
        assignment.folder,
    )
    prompts = sample_prompts(settings.sample_prompts, request.trigger_word)
    prepared = prepare(pictures, plan, prompts, base, device, interrupt)
    parts = put_together(plan, prepared.unet, prepared.examples, base, device)
    extras = Extras(
        folder,
        _sampler(prepared, parts, plan, settings, base, device) if prompts else None,
        prompts,
        every_epochs=settings.sample_every_epochs,
    )
    metrics = MetricsFile(folder.metrics)
    base_identity = identity_of(base, settings.mixed_precision)
    resumable = checkpoint_fingerprint(
        request,
        plan,
        examples=parts.examples.fingerprint,
        base=base_identity,
        weights=parts.adapter.weights.numel(),
    )
    checkpoint = _newest_checkpoint(folder, metrics, resumable)
    pays = graph_pays(
        settings.cuda_graphs,
        is_cuda=device.is_cuda,
        processes=workers.count,
        steps_left=total_steps(plan, parts.examples) - (checkpoint.step if checkpoint else 0),
    )
    training = Training(
        parts,
        plan,
        fingerprint=resumable,
        group=workers.join(plan, base, parts.examples, checkpoint),
        interrupt=interrupt,
        gradient_step=_graphed(parts, interrupt, settings) if pays else parts.eager_step(),
        hooks=Hooks(
            checkpoint_every=settings.checkpoint_every_epochs,
            save=partial(save_checkpoint, folder.checkpoints, keep=settings.checkpoints_kept),
            on_epoch=EpochReporter(metrics, plan.epochs),
            between_epochs=extras.between_epochs,
            peak_memory_mib=device.peak_memory_mib,
        ),
    )
    if checkpoint:
        training.restore(checkpoint)
        if not checkpoint.inside_epoch:
            extras.between_epochs(checkpoint.epoch)  # what the interruption may have broken off
    training.train()

    facts = TrainingFacts(
        style_id=str(request.style_id),
        trigger_word=request.trigger_word,
        captions=prepared.captions,
        steps=total_steps(plan, parts.examples),
        images=len(request.image_paths),
        prediction_type=parts.objective.prediction_type,
        precision=device.precision,
        loss=training.loss,
        fingerprint=assignment.fingerprint,
        base_identity=base_identity,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    for path in (folder.model_card, folder.loss_plot, folder.samples):  # of the weights that go now
        if is_own(path):
            path.unlink()
    folder.set_foreign_weights_aside()
    export_weights(folder.weights, parts.adapter.split(parts.optimizer.master), plan, facts)
    logger.info("Saved %s", folder.weights)
    extras.finish(plan, facts, metrics.read())
    return FinishedTraining(plan.epochs, facts.loss), extras.notes


def _find_base(plan: TrainingPlan, device: Device, pictures: ComingPictures) -> Path:
    """Return the base's folder; a bad picture comes first, since no later try would mend it."""
    pictures.check()
    try:
        return find_base(plan.base_model, plan.base_model_revision, device.dtype)
    except TrainerError:
        pictures.check()
        raise


def _graphed(parts: Parts, interrupt: Interrupt, settings: TrainerSettings) -> GraphedStep:
    record = interrupt.shielded()(record_cuda_graph)  # a capture left open would fail the checkpoint
    return GraphedStep(parts.eager_step(), parts.adapter.gradients, record, exact=settings.deterministic)


def _process_count(devices: int, batch_size: int, device: Device) -> int:
    """Return how many processes share a training: one a device, and none without an image."""
    available = torch.cuda.device_count() if device.is_cuda else max(1, devices)
    wanted = min(devices or available, available)
    if wanted > batch_size:
        logger.info("%d devices, but batch_size is %d: %d take part.", wanted, batch_size, batch_size)
    return min(wanted, batch_size)


def _sampler(
    prepared: Prepared,
    parts: Parts,
    plan: TrainingPlan,
    settings: TrainerSettings,
    base: Path,
    device: Device,
) -> Sampler:
    return Sampler(
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


def _newest_checkpoint(folder: StyleFolder, metrics: MetricsFile, fingerprint: str) -> Checkpoint | None:
    """Return the newest checkpoint of this training; without one, clear away what another one left."""
    checkpoint = load_newest(folder.checkpoints, fingerprint)
    if checkpoint:
        metrics.keep_until(checkpoint.epoch)
        logger.info("Going on from the checkpoint %s (step %d)", checkpoint.name, checkpoint.step)
        return checkpoint
    if folder.checkpoints.exists():
        logger.info("No checkpoint fits this request, its settings, pictures and base: starting afresh.")
        discard_checkpoints(folder.checkpoints)
        for row in folder.drawn_rows():
            row.unlink()
    metrics.keep_until(0)
    return None


@contextmanager
def _device_failures_explained() -> Iterator[None]:
    """Turn a failure of the device into a sentence; for memory the steps themselves have a way out before."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                "The base model and one picture do not fit into memory; use a GPU with at least 6 GB that "
                "nothing else uses, and give the container at least 8 GiB."
            ) from error
        if not is_device_fault(error):
            raise
        raise GpuFaultError(
            f"The GPU failed ({first_line(error)}); another node may do. If this comes again on every node, "
            "training.log has the traceback for a report."
        ) from error
