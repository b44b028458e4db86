"""Make text fit for a log: a presigned URL is a password, and so is a URL's user part.

Any text may come here, of any length, from whoever sends a message: each step takes time in proportion to it.
"""

import re
from typing import Final

_SCHEME: Final = r"\b[a-z][a-z0-9+.-]{0,30}://"
"""Of bounded length: each of its letters might begin another one."""
_USER: Final = re.compile(rf"(?P<scheme>{_SCHEME})[^\s/?#@]*@", re.IGNORECASE)
_WORD: Final = re.compile(r"""(?:[^\s'"<>]|['"](?=[\w&=%+/.~-]))+""")
"""A quote that goes on as a URL does is part of it: what ends at it's.jpg would leave the query behind."""
_ADDRESS: Final = re.compile(rf"{_SCHEME}|(?<![\w.])/", re.IGNORECASE)
_BEARER: Final = re.compile(r"(?P<scheme>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]+", re.IGNORECASE)


def redact(text: str) -> str:
    """Return text with the user part and the query of every URL, and every bearer token, replaced."""
    text = _USER.sub(r"\g<scheme>***@", text)
    text = _WORD.sub(_without_query, text)
    return _BEARER.sub(r"\g<scheme>***", text)


def _without_query(word: re.Match[str]) -> str:
    """Not one expression with the address before it, which would look for a ? from each address again."""
    address = _ADDRESS.search(word[0])
    mark = word[0].find("?", address.end()) if address else -1
    return f"{word[0][:mark]}?***" if 0 < mark < len(word[0]) - 1 else word[0]
