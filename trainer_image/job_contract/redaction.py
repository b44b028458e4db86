"""Make text fit for a log: a presigned URL is a password, and so is a URL's user part."""

import re
from typing import Final

_USER: Final = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^\s/?#@]*@", re.IGNORECASE)
_QUERY: Final = re.compile(
    r"(?P<url>(?:\b[a-z][a-z0-9+.-]*://|(?<![\w.])/)[^\s?#'\"<>]*)\?[^\s'\"<>]+", re.IGNORECASE
)
_BEARER: Final = re.compile(r"(?P<scheme>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]+", re.IGNORECASE)


def redact(text: str) -> str:
    """Return text with the user part and the query of every URL, and every bearer token, replaced."""
    text = _USER.sub(r"\g<scheme>***@", text)
    text = _QUERY.sub(r"\g<url>?***", text)
    return _BEARER.sub(r"\g<scheme>***", text)
