"""The files of a base: which its weights are, what tells them from another base's, and how they come into
memory while Python imports.

Nothing here imports torch, because the reading is to begin before that.
"""

import hashlib
import os
import re
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from trainer.settings import MixedPrecision

WEIGHTED_PARTS: Final = ("unet", "vae", "text_encoder")
_CONFIGS: Final = (
    *(f"{part}/config.json" for part in WEIGHTED_PARTS),
    "scheduler/scheduler_config.json",
)
_COMMIT: Final = re.compile("[0-9a-f]{40}")
_BLOCKS: Final = 64
_BLOCK_BYTES: Final = 4096
_READ_BYTES: Final = 1 << 20
_READS_A_CALL: Final = 1024
"""As many as Linux takes. Between two calls the thread would wait for Python, which is busy importing."""


def weights_file(folder: Path, part: str, *, half: bool = False) -> Path:
    """Return the file that a part is loaded from: the fp16 one if half is wanted or it is the only one."""
    name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    full, fp16 = (folder / part / f"{name}{variant}.safetensors" for variant in ("", ".fp16"))
    return fp16 if fp16.exists() and (half or not full.exists()) else full


def read_ahead(base_model: str, revision: str | None, mixed_precision: MixedPrecision) -> None:
    """Begin to read the weights into the system's page cache, if they are on this machine; return at once.

    Loading then finds there what came meanwhile; without it, loading only waits longer for the disk or
    the volume. So faults are passed over here: find_base and the loading report them.
    mixed_precision auto counts as fp16, which it is on a GPU; on a CPU it may be the wrong UNet that comes.
    """
    with suppress(OSError, ValueError):  # ValueError: the name is no hub's either
        folder = _folder(base_model, revision)
        if folder:
            files = _weights_files(folder, mixed_precision)
            # It ends with the process, whatever it waits for.
            threading.Thread(target=_read, args=(files,), name="read-ahead", daemon=True).start()


def find_identity(base_model: str, revision: str | None, mixed_precision: MixedPrecision) -> str | None:
    """Return identity_of the base; None if it is not on this machine, or cannot be read."""
    with suppress(OSError, ValueError):
        folder = _folder(base_model, revision)
        if folder:
            return identity_of(folder, mixed_precision)
    return None


def identity_of(folder: Path, mixed_precision: MixedPrecision) -> str:
    """Return what tells the base in folder from another, the same on every node and for every copy.

    A hub's commit says it all. Of any other folder it is a hash of the configurations, and of the weights'
    sizes and blocks spread over them: to read them all would take longer than many a step.

    Raises:
        OSError: a file cannot be read.
    """
    if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name):  # the hub's cache
        return folder.name
    digest = hashlib.sha256()
    for name in _CONFIGS:
        digest.update((folder / name).read_bytes())
    for path in filter(Path.is_file, _weights_files(folder, mixed_precision)):  # loading says what is missing
        size = path.stat().st_size
        digest.update(size.to_bytes(8))
        with path.open("rb", buffering=0) as file:
            for number in range(_BLOCKS):
                digest.update(os.pread(file.fileno(), _BLOCK_BYTES, size * number // _BLOCKS))
    return digest.hexdigest()


def _weights_files(folder: Path, mixed_precision: MixedPrecision) -> list[Path]:
    """Return the files of WEIGHTED_PARTS as they are loaded on a GPU; of a sharded part, all its files."""
    half = mixed_precision in ("auto", "fp16")
    files = []
    for part in WEIGHTED_PARTS:
        whole = weights_file(folder, part, half=half and part == "unet")
        files += [whole] if whole.exists() else sorted((folder / part).glob("*.safetensors"))
    return files


def _folder(base_model: str, revision: str | None) -> Path | None:
    """Return the base's folder, or its place in the hub's cache; None if it was never downloaded."""
    folder = Path(base_model).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(base_model, "model_index.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _read(files: Iterable[Path]) -> None:
    buffers = [bytearray(_READ_BYTES)] * _READS_A_CALL  # one buffer: only the page cache matters
    for path in files:
        with suppress(OSError), path.open("rb", buffering=0) as file:
            while os.readv(file.fileno(), buffers):
                pass
