"""The generator's composition root: config, registry, serving set, servicer, server."""

import sys
from concurrent.futures import ThreadPoolExecutor

from gristmill.generator.v1 import generator_service_pb2_grpc as rpc

from services.generator.config import GeneratorConfig
from services.generator.conversation import Bounds, Conversations
from services.generator.generator import Generator
from services.generator.servicer import GeneratorServicer
from services.generator.starter import Starter
from services.inference.memory import Budget
from services.inference.serving import Serving
from services.runtime import follower, logs, registry_client
from services.runtime.config import load
from services.runtime.health import Health
from services.runtime.registry_client import RegistryClient
from services.runtime.server import Server, Service, main


async def run(config: GeneratorConfig) -> None:
    """Serve until a signal."""
    health = Health()
    channel = registry_client.channel(
        config.registry, config.registry_ca, config.registry_token_file
    )
    registry = RegistryClient(channel, config.cache_dir)
    threads = ThreadPoolExecutor(config.preprocess_threads, thread_name_prefix="preprocess")
    starter = Starter(config, threads, health.model)
    serving: Serving[Generator] = Serving(
        "generation",
        registry.fetch,
        starter.start,
        config.models,
        health.model,
        budget=Budget(config.memory_budget_bytes),
        make_room=True,
    )
    conversations = Conversations()
    bounds = Bounds(
        config.max_turns,
        config.max_history_bytes,
        config.idle_timeout_s,
        config.default_timeout_s,
    )
    servicer = GeneratorServicer(serving, conversations, config.default_priority, bounds)
    service = Service(
        "generator",
        servicers=[(rpc.add_GeneratorServiceServicer_to_server, servicer)],
        on_drain=[conversations.drain],
        on_close=[serving.close, registry.close],
    )
    server = Server(config, service, health)
    await server.run(lambda: follower.begin(server, service, registry, serving))


if __name__ == "__main__":
    settings = load(GeneratorConfig, sys.argv[1:])
    logs.configure("generator", settings.log_level, settings.log_format)
    main(lambda: run(settings))
