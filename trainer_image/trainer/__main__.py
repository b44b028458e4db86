"""python -m trainer: train one style, say how it ended, exit with the code of the Job contract.

    arguments.py   the command line → the request; settings.py: the environment → the settings
    plan.py        both → what exactly is trained
    run.py         the stages of a training in their order; every other module is one of them

What is imported at the top of this file is light: torch comes only when there is something to train.
"""

import logging
import os
import signal
import sys
import time
from typing import NoReturn

if __name__ == "__main__":
    # Held back until main can answer them. As a container's first process it would miss them else.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))

from job_contract.outcome import TrainingResult
from job_contract.settings import InvalidSettingsError
from trainer.arguments import find_request, parse_arguments
from trainer.assignment import assign
from trainer.base_files import find_identity, read_ahead
from trainer.errors import (
    ConfigurationError,
    InterruptedTrainingError,
    StorageError,
    TrainerError,
    TrainingError,
)
from trainer.finished import find_finished
from trainer.imports import quick_imports
from trainer.interrupt import Interrupt, StopRequested
from trainer.logs import brief, log_to_file, start_logging, stop_logging
from trainer.pictures import ComingPictures
from trainer.settings import TrainerSettings
from trainer.style_folder import StyleFolder, write_atomically
from trainer.termination import report
from trainer.upload import upload_results

logger = logging.getLogger("trainer")


def main(argv: list[str]) -> int:
    """Run the trainer with these arguments and return the exit code."""
    start_logging()
    # Read when torch is loaded. Threads that never spin halve the speed of an idle CPU, and threads that spin
    # as long as they do by default make a busy one ten times slower.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    with Interrupt() as interrupt:
        try:
            interrupt.listen()
            outcome = _outcome(argv, interrupt)
            interrupt.close()
        except StopRequested:
            outcome = _interruption()
        code = report(outcome)
        stop_logging()
    return code


def _outcome(argv: list[str], interrupt: Interrupt) -> TrainingResult | TrainerError:
    try:
        return _run(argv, interrupt)
    except TrainerError as error:
        return error
    except InvalidSettingsError as error:
        sentence = str(error)
        return _caused(ConfigurationError(sentence[:1].upper() + sentence[1:]), error)
    except OSError as error:
        sentence = f"A file could not be read or written ({brief(error)}); check the models volume, its space"
        return _caused(StorageError(f"{sentence} and its permissions."), error)
    except Exception as error:  # noqa: BLE001 (whatever it is, the Job must end with a reason)
        if interrupt.event.is_set():  # a library made this of the handler's exception
            return _caused(_interruption(), error)
        sentence = f"The trainer failed unexpectedly: {type(error).__name__}: {brief(error)}"
        return _caused(TrainingError(f"{sentence}; training.log has the traceback."), error)


def _run(argv: list[str], interrupt: Interrupt) -> TrainingResult:
    """Train what the arguments ask for, unless that is done already; upload it.

    Raises:
        TrainerError: it ended badly; the error says how.
        StopRequested: a signal came.
    """
    started = time.monotonic()
    arguments = parse_arguments(argv)
    settings = TrainerSettings.from_environment()
    request = find_request(arguments, settings)
    folder = StyleFolder(settings.models_dir, request.style_id)
    folder.prepare()
    log_to_file(folder.log)
    folder.refuse_own_files(request.image_paths)
    with folder.locked():
        write_atomically(folder.request, request.to_json().encode())
        assignment = assign(request, settings, folder)
        plan = assignment.plan
        notes: list[str] = []
        base = (plan.base_model, plan.base_model_revision, settings.mixed_precision)
        finished = find_finished(folder, assignment.fingerprint, lambda: find_identity(*base))
        if finished:
            logger.info(
                "Style %s is trained already: %s is the result of this very request.",
                request.style_id,
                folder.weights,
            )
        else:
            with ComingPictures(request, plan, folder.downloads, interrupt) as pictures:
                with quick_imports(), interrupt.ended_by(_end_interrupted):
                    read_ahead(*base)
                    from trainer.run import train_style

                finished, notes = train_style(assignment, pictures, interrupt)
        s3_uri = None
        if settings.s3_bucket:
            prefix = f"{settings.s3_prefix}{request.style_id}/"
            s3_uri = upload_results(folder, settings.s3_bucket, prefix, notes)
    return TrainingResult(
        model_path=str(folder.weights),
        s3_uri=s3_uri,
        loss=finished.loss,
        epochs=finished.epochs,
        seconds=round(time.monotonic() - started, 3),
        notes=notes,
    )


def _interruption() -> InterruptedTrainingError:
    return InterruptedTrainingError(
        "A signal interrupted the training; started again, it goes on from its last checkpoint."
    )


def _end_interrupted() -> NoReturn:
    """End the process where there is nothing to save yet."""
    code = report(_interruption())
    stop_logging()
    os._exit(code)


def _caused(error: TrainerError, cause: Exception) -> TrainerError:
    error.__cause__ = cause
    return error


if __name__ == "__main__":
    # Python's own end would wait for threads whose downloads hang, longer than SIGTERM's grace period.
    os._exit(main(sys.argv[1:]))
