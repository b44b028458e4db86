"""Credentials as a pod has them: the service account's token and CA on disk, the API server behind TLS."""

from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Self

import pytest
from kubernetes.config import incluster_config

from dispatcher.backends.kubernetes import KubernetesBackend
from dispatcher.backends.kubernetes_client import load_client
from dispatcher.errors import BackendUnavailableError
from tests.dispatcher.cluster import new_job
from tests.parts.api_server import ApiServer
from tests.parts.receiver import Receiver
from tests.parts.tls import certificate, tls_in_front_of


def test_20_in_the_cluster_each_request_has_the_service_accounts_token_as_it_is_on_disk(
    api_server: ApiServer, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Release 36.0.0 of the client sent none in the cluster, and tokens are rotated every hour."""
    files, token = certificate(tmp_path), tmp_path / "token"
    token.write_text(api_server.token)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(files[0]))
    with tls_in_front_of(api_server.port, files) as port:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
        api = load_client(connections=2)
        backend = KubernetesBackend(api, api_server.namespace, "lora-trainer")
        assert backend.create(new_job(receiver, "first", 1))
        api_server.tokens = {"rotated": api_server.tokens[api_server.token]}
        with pytest.raises(BackendUnavailableError, match="401"):
            backend.create(new_job(receiver, "second", 2))
        token.write_text("rotated")
        monkeypatch.setattr(incluster_config.datetime, "datetime", InTwoMinutes)
        assert backend.create(new_job(receiver, "second", 2))
    assert "dispatcher" in api_server.requests[-1].user


class InTwoMinutes(datetime):
    """The client keeps a token that it has read for a minute, by the local time."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) + timedelta(minutes=2)
