"""Every way in which a training ends badly, with its exit code and failure code.

    TrainerError
    ├── UsageError             64  INVALID_REQUEST   the command line
    ├── InvalidRequestError    65  INVALID_REQUEST   the request
    ├── InvalidImageError      65  INVALID_IMAGES    a picture
    ├── DownloadError          69  DOWNLOAD_FAILED   a picture's host, or the base model's, does not answer
    ├── StorageError           69  STORAGE_ERROR     S3 or the models folder
    ├── TrainingError          70  TRAINING_ERROR    the software, or a loss that is not a number
    ├── OutOfMemoryError       70  OUT_OF_MEMORY
    ├── GpuFaultError          70  GPU_UNAVAILABLE   a GPU is there and does not work: another node may do
    ├── InterruptedTrainingError 75 EVICTED          SIGTERM; a checkpoint is kept
    ├── ConfigurationError     78  TRAINING_ERROR    a setting, or a base model that is not SD 1.5
    └── NoGpuError             78  GPU_UNAVAILABLE   REQUIRE_CUDA and there is none

The text of each is the failure_reason: one sentence that tells a person what to do, fit for a log.
"""

from typing import ClassVar

from job_contract.outcome import ExitCode, FailureCode


class TrainerError(Exception):
    """Base of the errors that end a training; subclasses say how."""

    exit_code: ClassVar[ExitCode] = ExitCode.SOFTWARE
    failure_code: ClassVar[FailureCode] = FailureCode.TRAINING_ERROR


class UsageError(TrainerError):
    exit_code = ExitCode.USAGE
    failure_code = FailureCode.INVALID_REQUEST


class InvalidRequestError(TrainerError):
    exit_code = ExitCode.BAD_DATA
    failure_code = FailureCode.INVALID_REQUEST


class InvalidImageError(TrainerError):
    exit_code = ExitCode.BAD_DATA
    failure_code = FailureCode.INVALID_IMAGES


class DownloadError(TrainerError):
    exit_code = ExitCode.UNAVAILABLE
    failure_code = FailureCode.DOWNLOAD_FAILED


class StorageError(TrainerError):
    exit_code = ExitCode.UNAVAILABLE
    failure_code = FailureCode.STORAGE_ERROR


class TrainingError(TrainerError):
    pass


class OutOfMemoryError(TrainerError):
    failure_code = FailureCode.OUT_OF_MEMORY


class GpuFaultError(TrainerError):
    failure_code = FailureCode.GPU_UNAVAILABLE


class InterruptedTrainingError(TrainerError):
    exit_code = ExitCode.INTERRUPTED
    failure_code = FailureCode.EVICTED


class ConfigurationError(TrainerError):
    exit_code = ExitCode.BAD_CONFIG


class NoGpuError(TrainerError):
    exit_code = ExitCode.BAD_CONFIG
    failure_code = FailureCode.GPU_UNAVAILABLE
