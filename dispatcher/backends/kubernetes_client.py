"""Makes the official client, and says what its errors mean without their headers and bodies."""

import json
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client import ApiException

from dispatcher.errors import BackendBusyError, BackendUnavailableError, DispatcherError, JobRefusedError
from job_contract.redaction import redact


def load_client(connections: int) -> client.ApiClient:
    """Make a client from the pod's service account, else from the kubeconfig.

    Raises:
        DispatcherError: neither is there.
    """
    configuration = client.Configuration()
    try:
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            config.load_kube_config(client_configuration=configuration)
    except (config.ConfigException, OSError) as error:
        raise DispatcherError(
            f"no Kubernetes cluster is configured: {error}; set KUBECONFIG, or run inside the cluster"
        ) from error
    configuration.connection_pool_maxsize = connections
    # Only a connection that was never made is tried again at once: a create may have been carried out.
    configuration.retries = urllib3.Retry(total=2, connect=2, read=0, redirect=0, status=0, other=0)
    return client.ApiClient(configuration)


def post(api: client.ApiClient, path: str, manifest: dict[str, Any], timeout: tuple[float, float]) -> None:
    """Create an object, sent as it is.

    The client's own create methods read a manifest into models and write it out again, which costs more
    than the rest of the request and drops every field that is newer than the client.

    Args:
        timeout: seconds to connect and to be answered in.

    Raises:
        ApiException: the API server answers anything but 2xx.
        urllib3.exceptions.HTTPError: it does not answer.
    """
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    method, url, headers, _, _ = api.param_serialize(
        "POST", path, header_params=headers, auth_settings=["BearerToken"]
    )
    response = api.call_api(method, url, headers, manifest, _request_timeout=timeout)
    response.read()  # a connection that is given back with an unread rest spoils the next request on it
    if not 200 <= response.status < 300:
        raise ApiException(http_resp=response)


def translated(error: ApiException, what: str) -> DispatcherError:
    """Say what an API error means; its headers and body stay out of the text."""
    message = describe(error)
    retry_after = (error.headers or {}).get("Retry-After") or ""
    seconds = float(retry_after) if retry_after.isdigit() else None
    if error.status == 429 or (error.status == 403 and "exceeded quota" in message):
        return BackendBusyError(f"{what}: {message}", seconds)
    if error.status in (400, 413, 422):
        return JobRefusedError(f"{what}: the cluster refuses it: {message}")
    return BackendUnavailableError(f"{what}: {message}", seconds)


def unreachable(error: urllib3.exceptions.HTTPError) -> BackendUnavailableError:
    return BackendUnavailableError(f"the Kubernetes API server cannot be reached: {describe(error)}")


def describe(error: Exception) -> str:
    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason:
        error = error.reason
    if not isinstance(error, ApiException):
        return redact(str(error))
    try:
        text = json.loads(error.body or "")["message"]
    except (ValueError, KeyError, TypeError):
        text = error.reason or ""
    return redact(f"{error.status} {text}"[:600])
