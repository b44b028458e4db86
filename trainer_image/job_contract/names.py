"""Names that both ends, and everybody who runs kubectl, hold on to."""

from typing import Final

APP_NAME: Final = "lora-trainer"
COMPONENT: Final = "training-job"

LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_INSTANCE: Final = "app.kubernetes.io/instance"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_STYLE_ID: Final = "lora-trainer.io/style-id"

REQUEST_ANNOTATION: Final = "lora-trainer.io/request"
FINALIZER: Final = "lora-trainer.io/status-relay"

CONTAINER_NAME: Final = "trainer"
REQUEST_MOUNT_DIR: Final = "/etc/lora"
REQUEST_FILE_NAME: Final = "request.json"
MODELS_MOUNT_DIR: Final = "/models"

TERMINATION_MESSAGE_PATH: Final = "/dev/termination-log"
TERMINATION_MESSAGE_PATH_VARIABLE: Final = "TERMINATION_MESSAGE_PATH"
"""Where the environment says so, the trainer writes its termination message there instead."""

WEIGHTS_FILE_NAME: Final = "lora_weights.safetensors"
"""The only .safetensors directly under MODELS_DIR/{style_id}: loaders of a folder take the first."""
