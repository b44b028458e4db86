"""The dispatcher's settings: each field is the environment variable of its name in capitals."""

import base64
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from dispatcher.allowed_hosts import AllowedHosts, url_fault
from job_contract.settings import EnvironmentSettings

Positive = Annotated[float, Field(gt=0)]


class DispatcherSettings(EnvironmentSettings):
    amqp_url: SecretStr = SecretStr("amqp://guest:guest@localhost:5672/%2F")
    """Where RabbitMQ is."""
    queue: Annotated[str, Field(min_length=1, max_length=200)] = "model_training"
    """The queue of requests; its dead letters are in `{queue}.dead`."""

    backend_url: str | None = None
    """The backend: a message without webhook_url goes to {BACKEND_URL}/api/models/{style_id}/status."""
    backend_token: SecretStr | None = None
    """Sent with every PATCH as `Authorization: Bearer ...`: printable ASCII."""
    webhook_secret: SecretStr | None = None
    """Signs every PATCH by Standard Webhooks: `whsec_` and base64 of 24 to 64 bytes."""
    webhook_allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts that a webhook_url may name, beside BACKEND_URL's: `host`, `host:port`, `*.domain`, networks in
    CIDR form, `*`; with commas between. They are reached directly: HTTPS_PROXY and its like do not count,
    since what a proxy connects to cannot be checked."""
    webhook_timeout_seconds: Positive = 20.0
    """For one PATCH as a whole, from the connection to its answer."""
    requests_ca_bundle: Path | None = None
    """A file of CA certificates (PEM) to check the backend's with, instead of the public ones; or a folder as
    OpenSSL hashes it."""
    webhook_first_retry_seconds: Positive = 1.0
    """Before the second attempt; doubled from there."""
    webhook_most_retry_seconds: Positive = 300.0
    """The longest wait between two attempts."""
    webhook_give_up_hours: Positive = 168.0
    """For so long a status is tried again; then it is parked on its Job."""
    progress_seconds: Positive = 30.0
    """The least time between two reports of a training's progress."""

    job_backend: Literal["local", "kubernetes"] = "local"
    """Where trainings run: child processes of this machine, or Jobs of a cluster."""
    max_active_jobs: Annotated[int, Field(ge=0)] = 0
    """Most Jobs that may be unfinished at once; further requests stay in the queue. 0: no limit. Of two
    dispatchers neither sees what the other creates at that very moment: they may exceed it by a few."""
    workers: Annotated[int, Field(ge=1, le=256)] = 32
    """Threads that bring statuses to the backend. One host has half of them at the most, so that one which
    does not answer holds up no other."""

    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")] = "default"
    """Where Jobs are made."""
    instance: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")] = (
        "lora-trainer"
    )
    """The label app.kubernetes.io/instance: a dispatcher looks after the Jobs of its own instance only."""
    job_template: Path | None = None
    """A YAML file with the Job to fill in; without it, the one that ships with the dispatcher."""
    trainer_image: str | None = None
    """The trainer's image; without it, the template's."""
    gpus_per_job: Annotated[int, Field(ge=0)] | None = None
    """The limit of nvidia.com/gpu; without it, the template's."""
    job_deadline_seconds: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """The seconds of all attempts of a training together (activeDeadlineSeconds of its Job); its wait for
    what other trainings hold does not count. Without it, the template's."""
    job_ttl_seconds: Annotated[int, Field(ge=0)] | None = None
    """ttlSecondsAfterFinished of a Job; without it, the template's."""
    models_claim: str | None = None
    """The PersistentVolumeClaim behind /models; without it, the template's."""
    priority_class: str | None = None
    """priorityClassName of the training pods."""
    kueue_queue: str | None = None
    """A Kueue LocalQueue: Jobs get its label, and Kueue decides when they start."""
    trainer_env: dict[str, str] = Field(default_factory=dict)
    """Variables for the trainer's container, as a JSON object: {"BASE_MODEL": "...", "S3_BUCKET": "..."}."""
    start_grace_seconds: Positive = 600.0
    """For so long a pod may be unable to start (image, node, secret) before its Job is given up; what other
    trainings hold (GPU, volume, quota) is waited for."""

    models_dir: Path = Path("/models")
    """Local backend: the folder of the models."""
    local_state_dir: Path = Path("~/.local/state/lora-trainer")
    """Local backend: what is known of the Jobs; a dispatcher that starts again goes on from here."""
    local_gpus: Annotated[tuple[str, ...], NoDecode] = ()
    """Local backend: the GPUs to use, as CUDA_VISIBLE_DEVICES names them; without it, all there are."""
    local_first_retry_seconds: Positive = 10.0
    """Local backend: before a training's first retry; doubled from there, up to 6 minutes."""

    health_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Serves /healthz, /readyz and /metrics; 0: not at all."""
    lease_name: str | None = None
    """Kubernetes backend: of the dispatchers that share this Lease one relays at a time; all consume."""

    log_format: Literal["auto", "json", "console"] = "auto"
    """`auto`: for people on a terminal, else JSON."""

    @field_validator("webhook_allowed_hosts", "local_gpus", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("webhook_allowed_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        AllowedHosts(value)  # a network that is none is a ValueError
        return value

    @field_validator("backend_url", "backend_token", "webhook_secret", mode="before")
    @classmethod
    def _trimmed(cls, value: object) -> object:
        """A Secret that was made from a file has the end of its line too."""
        return value.strip() or None if isinstance(value, str) else value

    @field_validator("backend_url")
    @classmethod
    def _base(cls, value: str | None) -> str | None:
        fault = url_fault(value) if value else None
        if fault is None and value and ("?" in value or "#" in value):
            fault = "must not hold a ? or #: /api/models/{style_id}/status is put behind it"
        if fault:
            raise ValueError(fault)
        return value

    @field_validator("backend_token")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        token = value.get_secret_value() if value else ""
        if not (token.isascii() and token.isprintable()):
            raise ValueError("must be printable ASCII, as it is sent in a header")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _signs(cls, value: SecretStr | None) -> SecretStr | None:
        if value:
            try:
                key = base64.b64decode(value.get_secret_value().removeprefix("whsec_"), validate=True)
            except ValueError as error:
                raise ValueError("must be whsec_ and base64") from error
            if not 24 <= len(key) <= 64:
                raise ValueError("must be whsec_ and base64 of 24 to 64 bytes")
        return value

    @property
    def start_grace(self) -> timedelta:
        return timedelta(seconds=self.start_grace_seconds)
