"""A kubeconfig for whoever has a token."""

import json
from pathlib import Path


def write_kubeconfig(path: Path, server: str, certificate_authority: str | None, token: str) -> None:
    """Write the file, for its owner only; certificate_authority is the path of a file in PEM.

    Without one the server's certificate is not checked.
    """
    cluster: dict[str, object] = {"server": server}
    if certificate_authority:
        cluster["certificate-authority"] = certificate_authority
    else:
        cluster["insecure-skip-tls-verify"] = True
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": cluster}],
        "users": [{"name": "tests", "user": {"token": token}}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        "current-context": "tests",
    }
    path.touch(0o600)
    path.write_text(json.dumps(config, indent=1))  # YAML holds JSON
