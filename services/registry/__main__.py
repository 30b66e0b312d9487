"""The registry's composition root: config, database, blobs, use cases, servicer, server."""

import sys
from pathlib import Path

from gristmill.registry.v1 import registry_service_pb2_grpc as rpc

from services.registry import operations
from services.registry.blobs import Blobs
from services.registry.config import RegistryConfig
from services.registry.database import Database
from services.registry.models import Models
from services.registry.servicer import RegistryServicer
from services.registry.store import Store
from services.registry.watch import Watch
from services.runtime import logs, metrics
from services.runtime.config import load
from services.runtime.health import Health
from services.runtime.server import Server, Service, main


async def run(config: RegistryConfig) -> None:
    """Serve until a signal."""
    database = Database(Path(config.data_dir) / "registry.db")
    await database.migrate()
    store = Store(database)
    metrics.REVISION.set(await store.revision())
    blobs = Blobs(Path(config.data_dir) / "artifacts", config.fsync_every_bytes)
    watch = Watch(store, config.watch_page)
    # What the servicer lacks, the generated base answers with UNIMPLEMENTED.
    servicer = RegistryServicer(  # type: ignore[abstract]
        Models(store, blobs), store, blobs, watch
    )
    service = Service(
        "registry",
        servicers=[(rpc.add_RegistryServiceServicer_to_server, servicer)],
        handlers={operations.SERVICE.full_name: operations.handlers(store)},
        on_drain=[watch.drain, servicer.draining.set],
        on_close=[database.close],
    )
    server = Server(config, service, Health())

    async def started() -> None:
        server.ready()

    await server.run(started)


if __name__ == "__main__":
    settings = load(RegistryConfig, sys.argv[1:])
    logs.configure("registry", settings.log_level, settings.log_format)
    main(lambda: run(settings))
