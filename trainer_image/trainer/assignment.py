"""One training as it is asked for: all that is known of it before torch is imported."""

from dataclasses import dataclass

from job_contract.request import TrainingRequest
from trainer.plan import TrainingPlan, make_plan, training_fingerprint
from trainer.settings import TrainerSettings
from trainer.style_folder import StyleFolder


@dataclass(frozen=True)
class Assignment:
    request: TrainingRequest
    settings: TrainerSettings
    plan: TrainingPlan
    folder: StyleFolder
    fingerprint: str
    """See training_fingerprint."""


def assign(request: TrainingRequest, settings: TrainerSettings, folder: StyleFolder) -> Assignment:
    plan = make_plan(request, settings)
    return Assignment(request, settings, plan, folder, training_fingerprint(request, plan))
