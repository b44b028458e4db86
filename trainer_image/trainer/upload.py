"""The finished files' copy in S3."""

import logging

from trainer.errors import StorageError
from trainer.storage import ObjectStorage, UnansweredUploadError
from trainer.style_folder import StyleFolder, is_own

logger = logging.getLogger(__name__)


def upload_results(folder: StyleFolder, bucket: str, prefix: str, notes: list[str]) -> str:
    """Copy the weights, and the training's own small files beside them, to S3; return the weights' URI.

    A small file that cannot be copied is noted; the weights come last, so that their being there means
    that all is. After the first that the storage lets wait, the other small ones are left out: the GPU
    would wait as well.

    Raises:
        StorageError: the weights could not be copied. A retry finds the training finished, and copies only.
        ConfigurationError: credentials or endpoint are missing or refused.
    """
    storage = ObjectStorage()
    small = [path for path in (folder.loss_plot, folder.samples, folder.model_card) if is_own(path)]
    if folder.metrics.exists():
        small.insert(0, folder.metrics)
    for path in small:
        try:
            storage.upload(path, bucket, prefix + path.name)
        except StorageError as error:
            logger.warning("%s", error)
            notes.append(f"{path.name} is not in S3: {error}")
            if isinstance(error, UnansweredUploadError):
                notes.append("The small files after it were left out.")
                break
    uri = storage.upload(folder.weights, bucket, prefix + folder.weights.name)
    logger.info("Uploaded to %s", uri)
    return uri
