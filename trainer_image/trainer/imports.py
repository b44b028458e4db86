"""Imports without the garbage collector: torch, diffusers and transformers are three thousand modules.

While they load, the collector looks again and again for garbage among objects that live as long as the
process; that is a quarter of the time from the process's start to the first step.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Pause the collector; afterwards it leaves all that is there by now alone."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
