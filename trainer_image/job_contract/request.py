"""The training request: one schema for the message's payload, the annotation and request.json."""

import re
from typing import Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

MAX_IMAGES: Final = 100
MAX_EPOCHS: Final = 500
DEFAULT_EPOCHS: Final = 100

_STYLE_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_IMAGE_SCHEMES: Final = ("s3://", "http://", "https://")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""And halves of a character, which JSON may hold (\\ud800) and UTF-8 may not."""


def _style_id(value: object) -> object:
    """Accept an integer, or 1-64 of A-Za-z0-9_-; the style id becomes a folder and a Job name."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("must be an integer or a text of 1-64 characters A-Z a-z 0-9 _ -")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("is larger than 64 bits hold")
    if not _STYLE_ID.fullmatch(str(value)):
        raise ValueError("may hold only 1-64 characters A-Z a-z 0-9 _ -")
    return value


def style_id_of(text: str) -> int | str:
    """Return the style id that a command line or a variable names: a number where a message has a number."""
    return int(text) if re.fullmatch(r"0|-?[1-9][0-9]{0,17}", text) else text


StyleId = Annotated[int | str, BeforeValidator(_style_id)]
Caption = Annotated[str, StringConstraints(max_length=1000)]
TaskId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
WebhookUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#]+[^\s]*$", max_length=2048)]


class TrainingRequest(BaseModel):
    """What to train. Fields that are null or unknown count as absent; a wrong type is an error."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    style_id: StyleId
    image_paths: Annotated[list[str], Field(min_length=1, max_length=MAX_IMAGES)]
    """s3://bucket/key, http(s)://..., or a path that the trainer can read."""
    webhook_url: WebhookUrl | None = None
    """The whole URL that is PATCHed; without it the dispatcher derives one from BACKEND_URL."""
    num_epochs: Annotated[int, Field(ge=1, le=MAX_EPOCHS)] = DEFAULT_EPOCHS
    """Passes over the images, whatever the batch size."""
    task_id: TaskId | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    captions: Annotated[list[Caption], Field(max_length=MAX_IMAGES)] | None = None
    """One per image, in the order of image_paths."""
    trigger_word: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if value is not None}
        return data

    @field_validator("image_paths")
    @classmethod
    def _image_paths_are_readable(cls, paths: list[str]) -> list[str]:
        for number, path in enumerate(paths, start=1):
            if not path.strip() or _CONTROL.search(path) or len(path) > 4096:
                raise ValueError(
                    f"entry {number} is empty, too long or holds control characters or half ones"
                )
            if "://" in path.partition("?")[0] and not path.lower().startswith(_IMAGE_SCHEMES):
                raise ValueError(f"entry {number} must be s3://, http://, https:// or a path")
        return paths

    @model_validator(mode="after")
    def _one_caption_per_image(self) -> Self:
        if self.captions is not None and len(self.captions) != len(self.image_paths):
            raise ValueError(f"captions has {len(self.captions)} entries for {len(self.image_paths)} images")
        return self

    def to_json(self) -> str:
        """Return the request as compact JSON without absent fields, for the annotation and the file."""
        return self.model_dump_json(exclude_none=True)


def explain(error: ValidationError) -> str:
    """Put every fault that pydantic found into one sentence that names the fields.

    Values are left out: they may be presigned URLs, or megabytes.
    """
    faults: dict[str, str] = {}
    for fault in error.errors(include_url=False, include_input=False):
        # ("style_id",) or ("image_paths", 3); a union adds the name of its branch, which says nothing.
        name = "".join(f"[{part}]" if isinstance(part, int) else str(part) for part in fault["loc"][:2])
        message = fault["msg"].removeprefix("Value error, ").replace(" after validation", "")
        if fault["type"] == "missing":
            sentence = f"{name} is missing"
        elif not name:
            sentence = message
        elif fault["type"] == "value_error":
            sentence = f"{name} {message}"
        else:
            sentence = name + message.removeprefix("Input").removeprefix("String").removeprefix("List")
        faults.setdefault(name, sentence)
    return "; ".join(faults.values())
