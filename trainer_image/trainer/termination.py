"""The end of the program: its outcome logged, written as the termination message, and made an exit code."""

import logging
import os
from pathlib import Path

from job_contract.names import TERMINATION_MESSAGE_PATH, TERMINATION_MESSAGE_PATH_VARIABLE
from job_contract.outcome import ExitCode, TrainingFailure, TrainingResult, encode
from trainer.errors import TrainerError
from trainer.logs import fit_for_log

logger = logging.getLogger(__name__)


def report(outcome: TrainingResult | TrainerError) -> int:
    """Log the outcome and write it as the termination message; return its exit code."""
    message: TrainingResult | TrainingFailure
    if isinstance(outcome, TrainingResult):
        code = ExitCode.OK
        message = outcome
        logger.info("Completed in %.1f s: %s, loss %.4f", outcome.seconds, outcome.model_path, outcome.loss)
    else:
        code = outcome.exit_code
        message = TrainingFailure(failure_code=outcome.failure_code, failure_reason=fit_for_log(str(outcome)))
        logger.error("%s", outcome, exc_info=outcome)
    variable = os.environ.get(TERMINATION_MESSAGE_PATH_VARIABLE)
    path = Path(variable or TERMINATION_MESSAGE_PATH)
    if variable or path.exists():  # outside a container nobody reads the default path
        try:
            path.write_bytes(encode(message))
        except OSError as error:
            logger.error("The termination message could not be written to %s (%s).", path, error.strerror)
    return int(code)
