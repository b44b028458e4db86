"""Which of the permissions that the dispatcher uses its service account lacks."""

from typing import Final

import urllib3
from kubernetes import client
from kubernetes.client import ApiException

from dispatcher.backends.kubernetes_client import translated, unreachable

NEEDED: Final = (
    ("batch", "jobs", ("get", "list", "watch", "create", "patch")),
    ("", "pods", ("list", "watch", "deletecollection")),
    ("", "pods/log", ("get",)),
    ("", "events", ("create", "list")),
)
"""API group, resource, verbs: what the chart's Role grants."""

LEASE: Final = ("coordination.k8s.io", "leases", ("get", "create", "update"))
"""Where LEASE_NAME is set, for the Lease of that name alone."""


def missing_permissions(api: client.ApiClient, namespace: str, *, lease: str | None) -> list[str]:
    """Ask the API server; return what is missing as `verb resource`.

    Args:
        lease: the name of the Lease, or None where none is used.

    Raises:
        DispatcherError: the API server does not answer.
    """
    authorization = client.AuthorizationV1Api(api)
    missing = []
    for group, resource, verbs in (*NEEDED, LEASE) if lease else NEEDED:
        name, _, subresource = resource.partition("/")
        for verb in verbs:
            attributes = {
                "namespace": namespace,
                "group": group,
                "resource": name,
                "subresource": subresource,
                "verb": verb,
            }
            if resource == "leases" and lease:
                attributes["name"] = lease
            review = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            }
            try:
                answer = authorization.create_self_subject_access_review(review, _request_timeout=(5, 10))
            except ApiException as error:
                raise translated(error, "the permissions could not be asked for") from error
            except urllib3.exceptions.HTTPError as error:
                raise unreachable(error) from error
            if not answer.status.allowed:
                missing.append(f"{verb} {resource}")
    return missing
