"""What `submit --wait` does: prints what becomes of one request, until it has ended or is refused."""

from collections.abc import Callable
from datetime import UTC, datetime

from dispatcher.backends import Backend, Snapshot
from dispatcher.diagnosis import Phase
from dispatcher.errors import BackendUnavailableError
from dispatcher.job import request_of
from dispatcher.overview import overview, seen
from dispatcher.refusal_listener import RefusalListener
from job_contract.outcome import ExitCode
from job_contract.progress import parse_progress
from job_contract.request import TrainingRequest

_ENDS = {Phase.COMPLETED: ExitCode.OK, Phase.FAILED: ExitCode.SOFTWARE}


def follow(
    name: str,
    request: TrainingRequest,
    backend: Backend,
    refusals: RefusalListener,
    show: Callable[[str], None],
) -> ExitCode:
    """Show each change once; return how it ended, as an exit code.

    Args:
        name: of the Job that the request becomes.
        show: takes a line.
    """
    shown, there = "", False
    while True:
        phase = None
        try:
            backend.load()
            snapshot = _ours(seen(backend, name), request)
        except BackendUnavailableError as error:
            line = f"not seen now: {error}"
        else:
            if snapshot is None and there:
                show("its Job is gone, and the backend was told how it ended")
                return ExitCode.UNAVAILABLE
            there = snapshot is not None
            phase, line = _state(snapshot, backend) if snapshot else (None, "waiting for the dispatcher")
        if line != shown:
            show(line)
            shown = line
        if phase in _ENDS:
            return _ENDS[phase]
        reason = refusals.wait(1)
        if reason:
            show(f"refused: {reason}")
            return ExitCode.BAD_DATA


def _ours(snapshot: Snapshot | None, request: TrainingRequest) -> Snapshot | None:
    """A Job of that name with another request is another's: our task_id was used before, and is refused."""
    return snapshot if snapshot and request_of(snapshot.job) == request else None


def _state(snapshot: Snapshot, backend: Backend) -> tuple[Phase, str]:
    [row] = overview([snapshot], datetime.now(UTC))
    if row.phase is Phase.RUNNING:
        progress = parse_progress(backend.log_tail(snapshot.pods[-1]["metadata"]["name"], lines=20))
        if progress:
            return row.phase, f"running, epoch {progress.current_epoch}/{progress.total_epochs}"
    return row.phase, f"{row.phase} {row.details}".rstrip()
