"""One request through RabbitMQ, the dispatcher, a trainer and back to a backend, on this machine.

Everything is kept in `demo/`. AMQP_URL names a broker of your own, BASE_MODEL a real base, EPOCHS the
passes over the ten pictures.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from dispatcher.queues import Queues, connect, publish
from tests.demo.progress import TrainingProgress
from tests.demo.summary import print_summary
from tests.parts.broker import RabbitNode
from tests.parts.receiver import Patch, Receiver

SCRIPTS = Path(__file__).parents[2] / "trainer_image"
STYLE_ID = 1
TINY_EPOCHS = 5
REAL_EPOCHS = 100


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where everything goes")
    folder: Path = parser.parse_args().folder.resolve()
    signal.signal(signal.SIGTERM, _interrupt)
    began = time.monotonic()
    try:
        with ExitStack() as stack:
            patches = _run(folder, stack)
    except KeyboardInterrupt:
        print("\nStopped; nothing is left running.")
        return 130
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print_summary(folder, STYLE_ID, patches, time.monotonic() - began)
    return 0 if patches[-1].status == "completed" else 1


def _run(folder: Path, stack: ExitStack) -> list[Patch]:
    """Start the parts, send the request and return what the backend was told."""
    base = os.environ.get("BASE_MODEL") or str(_tiny_base(folder))
    for old in ("models", "state", "rabbitmq", "pictures", "statuses.jsonl", "dispatcher.log"):
        path = folder / old
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    _script("sample_pictures.py", folder / "pictures")
    pictures = sorted((folder / "pictures").iterdir())

    amqp_url = os.environ.get("AMQP_URL") or _start_broker(folder, stack)
    token = secrets.token_urlsafe(24)
    receiver = stack.enter_context(Receiver(token=token, file=folder / "statuses.jsonl"))
    _say(f"A backend listens at {receiver.url} and writes what it is told to demo/statuses.jsonl")

    # A queue of its own, where the broker is shared with others.
    queue = f"model_training_demo_{secrets.token_hex(4)}" if os.environ.get("AMQP_URL") else "model_training"
    stack.callback(_delete_queues, amqp_url, Queues(queue))
    settings = {
        "AMQP_URL": amqp_url,
        "QUEUE": queue,
        "BACKEND_URL": receiver.url,
        "BACKEND_TOKEN": token,
        "JOB_BACKEND": "local",
        "LOCAL_STATE_DIR": str(folder / "state"),
        "MODELS_DIR": str(folder / "models"),
        "BASE_MODEL": base,
        "LOG_FORMAT": "json",
    }
    dispatcher = _start_dispatcher(folder, settings, stack)

    epochs = int(
        os.environ.get("EPOCHS") or (TINY_EPOCHS if not os.environ.get("BASE_MODEL") else REAL_EPOCHS)
    )
    request = {
        "style_id": STYLE_ID,
        "image_paths": [str(picture) for picture in pictures],
        "webhook_url": receiver.status_url(STYLE_ID),
        "num_epochs": epochs,
    }
    publish(amqp_url, queue, json.dumps(request).encode())
    _say(f"A publisher sent a request: style {STYLE_ID}, {len(pictures)} pictures, {epochs} epochs")
    return _follow(folder, receiver, dispatcher, epochs)


def _follow(
    folder: Path, receiver: Receiver, dispatcher: "subprocess.Popen[bytes]", epochs: int
) -> list[Patch]:
    with TrainingProgress(folder / "models" / str(STYLE_ID) / "training.log", epochs) as progress:
        while True:
            patches = receiver.patches
            if patches and patches[-1].status in ("completed", "failed"):
                progress.update()
                return patches
            if dispatcher.poll() is not None:
                raise DemoError(f"the dispatcher ended; see {folder / 'dispatcher.log'}")
            progress.update()
            time.sleep(0.2)


def _tiny_base(folder: Path) -> Path:
    base = folder / "base"
    if not (base / "model_index.json").exists():
        _say("Making a tiny base model of Stable Diffusion 1.5's architecture (random weights)")
        shutil.rmtree(base, ignore_errors=True)
        _script("tiny_base.py", base)
    return base


def _script(name: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, SCRIPTS / name, target], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise DemoError(f"{name} failed: {done.stderr.strip()}")


def _start_broker(folder: Path, stack: ExitStack) -> str:
    _say("Starting a private RabbitMQ node on loopback")
    return stack.enter_context(RabbitNode(folder / "rabbitmq")).url


def _start_dispatcher(folder: Path, settings: dict[str, str], stack: ExitStack) -> "subprocess.Popen[bytes]":
    log = stack.enter_context((folder / "dispatcher.log").open("wb"))
    process = subprocess.Popen(
        [sys.executable, "-m", "dispatcher", "run"], env={**os.environ, **settings}, stderr=log
    )
    stack.callback(_stop, process)
    _say("The dispatcher runs (its log: demo/dispatcher.log)")
    return process


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the dispatcher, and with it the trainer, whatever the terminal sends meanwhile."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _delete_queues(amqp_url: str, queues: Queues) -> None:
    if not os.environ.get("AMQP_URL"):
        return  # the node goes as a whole
    connection = connect(amqp_url)
    channel = connection.channel()
    for queue in (queues.work, queues.dead, queues.notices):
        channel.queue_delete(queue)
    connection.close()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
