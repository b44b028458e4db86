"""Whether a training is finished already: said by the weights file's own header. Needs no torch."""

import json
import logging
from dataclasses import dataclass

from trainer.style_folder import StyleFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedTraining:
    """What the weights file says of its training."""

    epochs: int
    loss: float


def find_finished(folder: StyleFolder, fingerprint: str) -> FinishedTraining | None:
    """Return the finished training with this fingerprint; None when it has still to be done, or completed.

    The model card is the last thing that a training writes: without it, plots or samples are missing.
    """
    if not folder.weights.exists() or not folder.model_card.exists():
        return None
    try:
        with folder.weights.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 10_000_000)))
        end = (
            8
            + length
            + max(value["data_offsets"][1] for name, value in header.items() if name != "__metadata__")
        )
        if folder.weights.stat().st_size != end:
            logger.warning("%s is cut off and is made again.", folder.weights)
            return None
        metadata = header["__metadata__"]
        if metadata.get("lora_trainer.fingerprint") != fingerprint:
            return None
        return FinishedTraining(int(metadata["lora_trainer.epochs"]), float(metadata["lora_trainer.loss"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is damaged (%s) and is made again.", folder.weights, error)
        return None
