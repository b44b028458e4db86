"""Ask the API server, and take its refusals apart."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import urllib3
from kubernetes import client

from tests.parts.api_server import ApiServer


def refused(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[int, str, str]:
    """Return status, reason and message of a call that must fail."""
    with pytest.raises(client.ApiException) as caught:
        call(*arguments, **options)
    status = json.loads(caught.value.body)
    assert status["kind"] == "Status"
    assert status["code"] == caught.value.status
    return status["code"], status["reason"], status["message"]


def raw(server: ApiServer, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
    """Ask without the Kubernetes client, for what it does not let through."""
    headers = {"Authorization": f"Bearer {server.token}", "Content-Type": kind}
    data = None if body is None else json.dumps(body).encode()
    return urllib3.PoolManager(retries=False).request(method, server.url + path, body=data, headers=headers)
