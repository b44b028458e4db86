"""What `status` and `submit --wait` show of the Jobs, from what a backend has read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from dispatcher.backends import Backend, Snapshot
from dispatcher.diagnosis import Diagnosis, Phase, diagnose
from dispatcher.job import Manifest, style_of
from dispatcher.relay_step import PARKED_ANNOTATION, PROCESSING_ANNOTATION, TERMINAL_ANNOTATION
from dispatcher.style_lanes import waits

_COLUMNS = ("STYLE", "JOB", "PHASE", "ATTEMPTS", "AGE", "BACKEND TOLD", "DETAILS")


@dataclass(frozen=True)
class Row:
    style: str
    job: str
    phase: Phase
    attempts: int
    age_seconds: int
    told: str
    """The last status that the backend got, `parked`, or `-`."""
    details: str

    def cells(self) -> tuple[str, ...]:
        return (
            self.style,
            self.job,
            self.phase.value,
            str(self.attempts),
            _age(self.age_seconds),
            self.told,
            self.details,
        )


def seen(backend: Backend, name: str) -> Snapshot | None:
    """Return what there is to show of a Job: with Events, where only they say why it does not start."""
    snapshot = backend.snapshot(name)
    unexplained = diagnose(snapshot.job, snapshot.pods).unexplained if snapshot else None
    if snapshot is None or unexplained is None:
        return snapshot
    return replace(snapshot, events=backend.events(unexplained.about))


def overview(snapshots: Iterable[Snapshot], now: datetime) -> list[Row]:
    """Return a row for each Job, the newest first."""
    rows = [_row(snapshot, now) for snapshot in snapshots]
    return sorted(rows, key=lambda row: (row.age_seconds, row.job))


def as_table(rows: Sequence[Row]) -> str:
    """Return the rows in columns, as kubectl prints them."""
    lines = [_COLUMNS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _row(snapshot: Snapshot, now: datetime) -> Row:
    metadata = snapshot.job["metadata"]
    annotations = metadata.get("annotations") or {}
    diagnosis = diagnose(snapshot.job, snapshot.pods, snapshot.events)
    created = datetime.fromisoformat(metadata["creationTimestamp"]).astimezone(UTC)
    told = annotations.get(TERMINAL_ANNOTATION) or annotations.get(PROCESSING_ANNOTATION) or "-"
    return Row(
        style=str(style_of(snapshot.job)),
        job=metadata["name"],
        phase=diagnosis.phase,
        attempts=len(snapshot.pods),
        age_seconds=int((now - created).total_seconds()),
        told=told.partition(" ")[0],
        details=annotations.get(PARKED_ANNOTATION) or _details(snapshot.job, diagnosis),
    )


def _details(job: Manifest, diagnosis: Diagnosis) -> str:
    if waits(job) and not diagnosis.terminal:
        return "its turn comes when no other training of its style is under way"
    if diagnosis.result:
        return diagnosis.result.model_path
    failure = diagnosis.failure or (diagnosis.stuck.failure if diagnosis.stuck else None)
    return f"{failure.failure_code}: {failure.failure_reason}" if failure else ""


def _age(seconds: int) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(0, seconds)}s"
