"""Files of a hub's repository: the one module that downloads with huggingface_hub.

None of its exceptions, nor of its HTTP client's, leaves this file.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from trainer.errors import ConfigurationError, DownloadError

_TIMEOUTS_SECONDS: Final = {"connect": 5, "read": 10, "write": 10, "pool": 10}
"""As for pictures. What may pass the hub's library tries again, up to six times."""

logger = logging.getLogger(__name__)


def download(
    repository: str, revision: str | None, needed: Sequence[str], wanted: Sequence[str] = ()
) -> Path:
    """Return the cache's folder with the repository's files; those that are missing are fetched.

    Args:
        needed: files; where some are still missing, the hub must answer, or the download counts as failed.
        wanted: patterns of files that are fetched if they are there.

    Raises:
        ConfigurationError: there is no such repository or revision, or no permission to read it.
        DownloadError: the hub does not answer, or breaks off.
    """
    import httpx2
    from huggingface_hub import (
        HfApi,
        constants,
        set_client_factory,
        snapshot_download,
        try_to_load_from_cache,
    )
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # they fill a pod's log with one line a second
    set_client_factory(_impatient_client)
    executor = ThreadPoolExecutor(1, thread_name_prefix="base")
    try:
        cached = [try_to_load_from_cache(repository, name, revision=revision) for name in needed]
        if not constants.HF_HUB_OFFLINE and not all(isinstance(path, str) for path in cached):
            logger.info("Downloading %s into %s, once", repository, constants.HF_HUB_CACHE)
        folder = executor.submit(
            snapshot_download, repository, revision=revision, allow_patterns=[*needed, *wanted]
        ).result()
        if not constants.HF_HUB_OFFLINE and not all((Path(folder) / name).exists() for name in needed):
            # Where the hub does not answer, the library returns what an earlier download began.
            executor.submit(HfApi().repo_info, repository, revision=revision).result()
        return Path(folder)
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ConfigurationError(
            f"BASE_MODEL {repository} (revision {revision or 'main'}) is not on the hub, or needs a token "
            "(HF_TOKEN) that may read it."
        ) from error
    except LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            raise ConfigurationError(
                f"HF_HUB_OFFLINE is set, and the hub's cache has no {repository} (revision "
                f"{revision or 'main'}); fill the cache, or unset it."
            ) from error
        raise _download_error(repository, error) from error
    except HFValidationError as error:
        raise ConfigurationError(f"BASE_MODEL {repository} is no folder and no name of a hub's.") from error
    except (httpx2.HTTPError, OSError, RuntimeError) as error:  # RuntimeError: by the hub's own protocol, Xet
        raise _download_error(repository, error) from error
    finally:
        # Not waited for: SIGTERM raises here, and the hub's own threads would first complete their files.
        executor.shutdown(wait=False)


def _download_error(repository: str, error: Exception) -> DownloadError:
    return DownloadError(
        f"The base model {repository} could not be downloaded ({type(error).__name__}); check the way to the "
        "hub, or set BASE_MODEL to a folder that holds it."
    )


def _impatient_client() -> Any:
    """Return the library's HTTP client, which by itself waits without end for a hub that says nothing."""
    from huggingface_hub.utils._http import default_client_factory

    def limit(request: Any) -> None:
        request.extensions["timeout"] = _TIMEOUTS_SECONDS  # here, for most requests say that they have none

    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "request": [*hooks["request"], limit]}
    return client
