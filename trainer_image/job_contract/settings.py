"""Settings from the environment that refuse to start on a malformed or misspelt name."""

import difflib
import os
from collections.abc import Mapping
from typing import Any, Self

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError


class InvalidSettingsError(Exception):
    """The environment holds a setting that cannot be used; the text names it."""


class EnvironmentSettings(BaseSettings):
    """Base of each deployable's settings: field `amqp_url` is the variable AMQP_URL."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

    @classmethod
    def from_environment(cls, **overrides: Any) -> Self:
        """Read the settings; overrides (from the command line) win over the environment.

        Raises:
            InvalidSettingsError: a value is malformed or missing, or a name is misspelt.
        """
        _refuse_misspelt(os.environ, {name.upper() for name in cls.model_fields})
        try:
            return cls(**{name: value for name, value in overrides.items() if value is not None})
        except ValidationError as error:
            faults = "; ".join(
                f"{_name(fault['loc'])}: {fault['msg'].removeprefix('Value error, ')}"
                for fault in error.errors(include_url=False, include_input=False)
            )
            raise InvalidSettingsError(f"the settings cannot be used: {faults}") from error
        except SettingsError as error:  # a list or an object that is not JSON
            raise InvalidSettingsError(f"the settings cannot be used: {error}") from error


def _name(location: tuple[int | str, ...]) -> str:
    return str(location[0]).upper() if location else "settings"


def _refuse_misspelt(environment: Mapping[str, str], known: set[str]) -> None:
    """Raise when a variable is nearly, but not quite, one of ours: MAX_ACTIVE_JOB.

    The environment is full of other programs' variables, so only near misses can be told apart.
    Kubernetes' service links (BACKEND_PORT, BACKEND_SERVICE_HOST) are not misspellings.
    """
    for name in environment:
        if name.upper() in known or "_SERVICE_" in name or "_PORT" in name:
            continue
        close = difflib.get_close_matches(name.upper(), sorted(known), n=1, cutoff=0.9)
        if close:
            raise InvalidSettingsError(f"{name} is not a setting of this program; did you mean {close[0]}?")
