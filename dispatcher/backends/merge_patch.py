"""JSON merge patch (RFC 7386), as the API server applies it."""

import copy
from typing import Any


def merge_patch(target: Any, change: Any) -> Any:
    """Apply a merge patch and return the result; neither argument is changed."""
    if not isinstance(change, dict):
        return copy.deepcopy(change)
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in change.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), value)
    return result
