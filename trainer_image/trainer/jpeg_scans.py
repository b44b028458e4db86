"""How many times a JPEG has its pixels gone over, counted before they are."""

import re
from typing import Final

_SEGMENT: Final = re.compile(rb"\xff[\xc0-\xcf\xd9-\xef\xfe]")
"""A marker that a length follows, or the end; ITU-T T.81, table B.1. Coded pixels hold none of them."""
_END: Final = b"\xff\xd9"
_SCAN: Final = b"\xff\xda"


def count_scans(content: bytes, at_most: int) -> int:
    """Return the number of scans of the first picture in a JPEG file's content, or at_most + 1.

    Segments are skipped as libjpeg skips them, so neither metadata, nor what phones append (a film, a map
    of depths), is taken for scans.
    """
    scans, at = 0, 0
    while scans <= at_most and (marker := _SEGMENT.search(content, at)):
        at = marker.end()
        if marker[0] != _END:
            scans += marker[0] == _SCAN
            at += int.from_bytes(content[at : at + 2])
        elif scans:  # before the first one, Pillow reads on
            break
    return scans
