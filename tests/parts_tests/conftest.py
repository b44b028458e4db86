"""Real clients of the API server, with the dispatcher's token."""

from typing import Any

import pytest
from kubernetes import client

from tests.parts.api_server import ApiServer


@pytest.fixture
def jobs(api_server: ApiServer) -> Any:
    return client.BatchV1Api(api_server.client())


@pytest.fixture
def core(api_server: ApiServer) -> Any:
    return client.CoreV1Api(api_server.client())
