"""A classifier of its own process whose device takes a known time for a batch, and writes it down.

The real server, admission and batcher; only the model is not one: it sleeps, and answers with the
number that it was given. Each number goes to a file with the moment when it was begun to be
computed, on the clock that all processes of a machine share.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray
from pydantic_settings import SettingsConfigDict

from services.runtime import logs
from services.runtime.admission import Limits
from services.runtime.config import ServerConfig, load
from services.runtime.health import Health
from services.runtime.server import Server, main
from tests.harness import classifier
from tests.unit.classifier.models import World

COMPUTED = "computed.txt"


class Config(ServerConfig):
    """The settings of this process."""

    model_config = SettingsConfigDict(env_prefix="GRISTMILL_SLOW_CLASSIFIER_")

    folder: Path = Path()
    """Where the model and the list of what was computed are."""
    batch_ms: float = 10.0
    """What a batch takes, of whatever size."""
    max_batch_size: int = 1
    """Items in a batch."""
    max_queue_items: int = 100
    """Items waiting or running."""


class Device:
    """Takes its time."""

    def __init__(self, seconds: float, computed: IO[str]) -> None:
        self._seconds = seconds
        self._computed = computed

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """One batch, on the instance's thread."""
        now = time.monotonic()
        rows = next(iter(inputs.values()))
        self._computed.writelines(f"{int(row[0])} {now!r}\n" for row in rows)
        time.sleep(self._seconds)


async def run(config: Config) -> None:
    """Serve until a signal."""
    with (config.folder / COMPUTED).open("w", encoding="utf-8", buffering=1) as computed:
        device = Device(config.batch_ms / 1000, computed)
        world = World(config.folder, device, limits=Limits(config.max_queue_items, 2**30))
        world.declare(
            "slow",
            input={"kind": "float_features", "names": ["number"]},
            batching={"max_batch_size": config.max_batch_size},
        )
        await world.add("slow")
        service = classifier(world.servicer, on_drain=[world.traffic.drain], on_close=[world.close])
        server = Server(config, service, Health())

        async def started() -> None:
            server.ready()

        await server.run(started)


if __name__ == "__main__":
    settings = load(Config, sys.argv[1:])
    logs.configure("slow-classifier", settings.log_level, settings.log_format)
    main(lambda: run(settings))
