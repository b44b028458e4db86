"""What the backend is told: the bodies of the PATCH, pure."""

import re
from typing import Any

from job_contract.outcome import TrainingFailure, TrainingResult
from job_contract.progress import Progress

Payload = dict[str, Any]


def processing(style_id: int | str | None, task_id: str | None, progress: Progress | None = None) -> Payload:
    payload = _head(style_id, task_id, "processing")
    if progress:
        payload["progress"] = {
            "current_epoch": progress.current_epoch,
            "total_epochs": progress.total_epochs,
            "progress_percent": progress.percent,
            "estimated_seconds": progress.estimated_seconds,
        }
    return payload


def completed(style_id: int | str | None, task_id: str | None, result: TrainingResult) -> Payload:
    return {
        **_head(style_id, task_id, "completed"),
        "model_path": result.model_path,
        "s3_uri": result.s3_uri,
        "training_metric": {"loss": result.loss, "epochs": result.epochs},
    }


def failed(style_id: int | str | None, task_id: str | None, failure: TrainingFailure) -> Payload:
    return {
        **_head(style_id, task_id, "failed"),
        "failure_reason": failure.failure_reason,
        "failure_code": failure.failure_code.value,
    }


def _head(style_id: int | str | None, task_id: str | None, status: str) -> Payload:
    return {"style_id": style_id, "task_id": task_id, "training_status": status}


def host_of(url: str | None) -> str:
    """Return the host of a URL with its port: those that wait for one host are to hold up no other."""
    return re.split("[/?#]", (url or "").partition("://")[2], maxsplit=1)[0].lower()


def default_url(backend_url: str | None, style_id: int | str | None) -> str | None:
    """Return where a style's statuses go when its message names no webhook_url."""
    if not backend_url or style_id is None:
        return None
    return f"{backend_url.rstrip('/')}/api/models/{style_id}/status"
