"""The classifier's composition root: config, registry, serving set, servicer, server."""

import sys
from concurrent.futures import ThreadPoolExecutor

from gristmill.classifier.v1 import classifier_service_pb2_grpc as rpc
from prometheus_client import REGISTRY

from services.classifier.classifier import Classifier
from services.classifier.config import ClassifierConfig
from services.classifier.oip.servicer import InferenceServicer
from services.classifier.servicer import ClassifierServicer
from services.classifier.starter import Starter
from services.classifier.traffic import Traffic
from services.inference import cache
from services.inference.memory import Budget
from services.inference.nvml import GpuCollector
from services.inference.serving import Serving
from services.oip import contract as oip
from services.runtime import follower, logs, registry_client
from services.runtime.config import load
from services.runtime.health import SERVING, Health
from services.runtime.registry_client import RegistryClient
from services.runtime.server import VERSION, CannotStart, Server, Service, main


async def run(config: ClassifierConfig) -> None:
    """Serve until a signal."""
    health = Health()
    channel = registry_client.channel(
        config.registry, config.registry_ca, config.registry_token_file
    )
    registry = RegistryClient(channel, config.cache_dir)
    REGISTRY.register(GpuCollector())
    threads = ThreadPoolExecutor(config.preprocess_threads, thread_name_prefix="preprocess")
    try:
        kept = cache.build(config)
    except ValueError as error:
        raise CannotStart(str(error)) from error
    starter = Starter(
        threads,
        config.providers,
        config.instances,
        config.quota_items_per_s,
        config.device,
        kept,
        registry.profiles,
    )
    serving: Serving[Classifier] = Serving(
        "classification",
        registry.fetch,
        starter.start,
        config.models,
        health.model,
        budget=Budget(config.memory_budget_bytes),
        shadows=True,
    )
    traffic = Traffic(serving)
    servicer = ClassifierServicer(
        serving, traffic, config.default_priority, config.default_timeout_s
    )
    inference = InferenceServicer(
        serving,
        traffic,
        lambda: health.status("") == SERVING,
        VERSION,
        config.default_priority,
        config.default_timeout_s,
    )
    service = Service(
        "classifier",
        servicers=[(rpc.add_ClassifierServiceServicer_to_server, servicer)],
        handlers={oip.SERVICE.full_name: oip.method_handlers(inference)},
        pools=(oip.POOL,),
        on_drain=[traffic.drain],
        on_close=[traffic.close, serving.close, *([kept.close] if kept else []), registry.close],
    )
    server = Server(config, service, health)

    await server.run(lambda: follower.begin(server, service, registry, serving))


if __name__ == "__main__":
    settings = load(ClassifierConfig, sys.argv[1:])
    logs.configure("classifier", settings.log_level, settings.log_format)
    main(lambda: run(settings))
