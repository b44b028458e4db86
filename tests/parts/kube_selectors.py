"""Label and field selectors, as the API server reads them from a query."""

import re
from collections.abc import Callable
from typing import Any, Final

from tests.parts.kube_schema import ResourceType
from tests.parts.kube_status import ApiError

Matcher = Callable[[dict[str, Any]], bool]

_SET_TERM: Final = re.compile(r"(?P<key>\S+)\s+(?P<op>in|notin)\s*\((?P<values>[^)]*)\)")
_PLAIN_TERM: Final = re.compile(r"(?P<key>[^\s=!]+)\s*(?P<op>==|=|!=)\s*(?P<value>[^\s=!]*)")
_EXISTS_TERM: Final = re.compile(r"(?P<absent>!?)\s*(?P<key>[A-Za-z0-9./_-]+)")


def label_matcher(selector: str) -> Matcher:
    """Return a function of an object for a=b, a!=b, `a in (b,c)`, `a notin (b)`, a, !a, joined by commas."""
    terms = [_label_term(term.strip()) for term in re.split(r",(?![^(]*\))", selector) if term.strip()]

    def matches(item: dict[str, Any]) -> bool:
        labels = item["metadata"].get("labels") or {}
        return all(term(labels) for term in terms)

    return matches


def _label_term(term: str) -> Callable[[dict[str, str]], bool]:
    if found := _SET_TERM.fullmatch(term):
        key, values = found["key"], {value.strip() for value in found["values"].split(",")}
        if found["op"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if found := _PLAIN_TERM.fullmatch(term):
        key, value = found["key"], found["value"]
        if found["op"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if found := _EXISTS_TERM.fullmatch(term):
        key, absent = found["key"], bool(found["absent"])
        return lambda labels: (key in labels) != absent
    raise ApiError(400, f'unable to parse requirement: "{term}"')


def field_matcher(resource: ResourceType, selector: str) -> Matcher:
    """Return a function of an object for field=value and field!=value, joined by commas."""
    terms: list[tuple[list[str], bool, str]] = []
    for term in filter(None, selector.split(",")):
        name, *rest = re.split(r"(!=|==|=)", term, maxsplit=1)
        if not rest:
            raise ApiError(400, f"invalid selector: '{selector}'; can't understand '{term}'")
        equal, value = rest
        if name not in resource.fields:
            raise ApiError(
                400,
                f'Unable to find "{resource.api_version}, Resource={resource.plural}" that match label'
                f' selector "", field selector "{selector}": field label not supported: {name}',
            )
        # status.successful is the selector's name for status.succeeded.
        path = "status.succeeded" if name == "status.successful" else name
        terms.append((path.split("."), equal != "!=", value))

    def matches(item: dict[str, Any]) -> bool:
        return all((_look_up(item, path) == value) == equal for path, equal, value in terms)

    return matches


def _look_up(item: Any, path: list[str]) -> str:
    for name in path:
        item = (item or {}).get(name)
    if item is None:
        return "0" if path[-1] == "succeeded" else ""
    return str(item)
