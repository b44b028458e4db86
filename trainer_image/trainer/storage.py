"""S3: the one module that imports boto3. None of its exceptions leaves this file."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from trainer.errors import ConfigurationError, DownloadError, InvalidImageError, StorageError, TrainerError
from trainer.images import picture_name
from trainer.logs import brief

_CHUNK_BYTES: Final = 1 << 16
_CONNECT_TIMEOUT_SECONDS: Final = 5
_READ_TIMEOUT_SECONDS: Final = 10
_ATTEMPTS: Final = 3

_BAD_CREDENTIALS: Final = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_PASSING: Final = {"RequestTimeout", "RequestTimeTooSkewed", "SlowDown", "Throttling", "OperationAborted"}
"""Answers with a 4xx status that another try may not get."""
_OTHER_REGION: Final = {"PermanentRedirect", "AuthorizationHeaderMalformed"}


class UnansweredUploadError(StorageError):
    """The storage did not answer in time; it lets every further file wait as long."""


class ObjectStorage:
    """An S3 that the AWS variables name: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and the others.

    Threads may share one. boto3 is imported at the first use, so a run without S3 doesn't wait for it.
    """

    def __init__(self) -> None:
        self._client: Any = None
        self._lock = threading.Lock()

    def read(self, uri: str) -> Iterator[bytes]:
        """Yield the content of s3://bucket/key in chunks.

        Raises:
            InvalidImageError: there is no such object or it may not be read; another try can't help.
            ConfigurationError: credentials or endpoint are missing or refused.
            DownloadError: the storage doesn't answer, is busy, or breaks off.
        """
        bucket, _, key = uri[len("s3://") :].partition("/")
        if not bucket or not key:
            raise InvalidImageError(f"{picture_name(uri)} names no object; write s3://bucket/key")
        with _own_errors(f"reading {picture_name(uri)}", refused=InvalidImageError, failed=DownloadError):
            body = self._s3().get_object(Bucket=bucket, Key=key)["Body"]
            with body:
                yield from body.iter_chunks(_CHUNK_BYTES)

    def upload(self, path: Path, bucket: str, key: str) -> str:
        """Copy the file to s3://bucket/key and return that URI; what was there before is replaced.

        Raises:
            UnansweredUploadError: the storage doesn't answer.
            StorageError: it fails, refuses, or is no S3.
            ConfigurationError: credentials, region or endpoint are missing or refused.
        """
        uri = f"s3://{bucket}/{key}"
        with (
            path.open("rb") as file,
            _own_errors(
                f"writing {picture_name(uri)}",
                refused=StorageError,
                failed=StorageError,
                unanswered=UnansweredUploadError,
            ),
        ):
            # In one request, on this thread, where SIGTERM is noticed. boto3's own upload_file sends large
            # files in parts, and takes them back at a signal, from a storage that may not answer.
            answer = self._s3().put_object(Bucket=bucket, Key=key, Body=file)
        if not answer.get("ETag"):  # as from a web server that answers everything with a page of its own
            raise StorageError(
                f"What AWS_ENDPOINT_URL names is no S3: it answered {picture_name(uri)} without an ETag, and "
                "nothing says that the file is there; check that variable"
            )
        return uri

    def _s3(self) -> Any:
        with self._lock:  # boto3 makes clients on one thread only
            if self._client is None:
                import boto3
                from botocore.config import Config

                self._client = boto3.session.Session().client(
                    "s3",
                    config=Config(
                        connect_timeout=_CONNECT_TIMEOUT_SECONDS,
                        read_timeout=_READ_TIMEOUT_SECONDS,
                        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                        # S3 look-alikes refuse the checksums that boto3 sends since 1.36.
                        request_checksum_calculation="when_required",
                        response_checksum_validation="when_required",
                    ),
                )
            return self._client


@contextmanager
def _own_errors(
    doing: str,
    *,
    refused: type[TrainerError],
    failed: type[TrainerError],
    unanswered: type[TrainerError] | None = None,
) -> Iterator[None]:
    """Turn what boto3 and botocore raise into refused (by the storage, for good) or failed (may pass)."""
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        raise _answer(error, doing, refused=refused, failed=failed) from error
    except (exceptions.ParamValidationError, exceptions.UnsupportedS3ConfigurationError) as error:
        # boto3's own text is the regular expression of all allowed names.
        raise refused(f"S3 allows no such bucket or key: {doing}; check both names") from error
    except (exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError) as error:
        raise (unanswered or failed)(
            f"S3 did not answer or broke off: {doing}: {brief(error)}; check AWS_ENDPOINT_URL and that the "
            "storage is up"
        ) from error
    except (exceptions.BotoCoreError, ValueError) as error:
        # ValueError is what boto3 makes of an AWS_ENDPOINT_URL that is no URL.
        raise ConfigurationError(
            f"S3 cannot be used: {doing}: {brief(error)}; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
            "and AWS_ENDPOINT_URL"
        ) from error
    except RecursionError as error:  # botocore has no other end for redirects in a circle
        raise failed(f"S3 redirects in a circle: {doing}; check AWS_ENDPOINT_URL and AWS_REGION") from error
    except OSError as error:
        raise failed(f"the connection to S3 failed: {doing}: {brief(error)}") from error


def _answer(
    error: Any, doing: str, *, refused: type[TrainerError], failed: type[TrainerError]
) -> TrainerError:
    """Return our error for an error answer of the storage."""
    response: dict[str, Any] = error.response
    code = str(response.get("Error", {}).get("Code", "")) or type(error).__name__
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _BAD_CREDENTIALS:
        return ConfigurationError(
            f"S3 refuses the credentials ({code}): {doing}; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if code in _OTHER_REGION:
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region = headers.get("x-amz-bucket-region", "another region")
        return ConfigurationError(
            f"The S3 bucket is in {region} ({code}): {doing}; set AWS_REGION and AWS_DEFAULT_REGION to it, "
            "and AWS_ENDPOINT_URL, if it is set, to an endpoint of that region"
        )
    if 400 <= status < 500 and status != 429 and code not in _PASSING:
        return refused(f"S3 refuses ({code}): {doing}; check that it exists and that this key may use it")
    return failed(f"S3 failed ({code}): {doing}; check that the storage is up")
