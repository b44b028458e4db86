"""Whether a training is finished already: said by the weights file's own header. Needs no torch."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

from trainer.style_folder import MAX_HEADER_BYTES, StyleFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedTraining:
    """What the weights file says of its training."""

    epochs: int
    loss: float


def find_finished(
    folder: StyleFolder, fingerprint: str, base_identity: Callable[[], str | None]
) -> FinishedTraining | None:
    """Return the finished training with this fingerprint; None when something of it is still to be done.

    The model card is the last thing that a training writes: without it, plots or samples are missing.

    Args:
        base_identity: returns that of the base, which is asked for only where the fingerprint is the same.
            None, of a base that is not on this machine, is no reason to train again: nobody downloads
            gigabytes to learn that there is nothing to do.
    """
    if not folder.weights.exists() or not folder.model_card.exists():
        return None
    try:
        with folder.weights.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            metadata = json.loads(file.read(min(length, MAX_HEADER_BYTES)))["__metadata__"]
            body = hashlib.file_digest(file, "sha256").hexdigest()
        if metadata.get("lora_trainer.fingerprint") != fingerprint:
            return None
        if base_identity() not in (None, metadata["lora_trainer.base"]):
            logger.info("%s was trained on another base and is made again.", folder.weights)
            return None
        if metadata["sshs_model_hash"] != body:
            logger.warning("%s is cut off or damaged and is made again.", folder.weights)
            return None
        return FinishedTraining(int(metadata["lora_trainer.epochs"]), float(metadata["lora_trainer.loss"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s is damaged (%s) and is made again.", folder.weights, error)
        return None
