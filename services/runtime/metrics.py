"""Every metric name, label and bucket, in one list. Base units; no label holds a caller."""

import platform

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Info, start_http_server

CALL_BUCKETS = (
    *(0.0001, 0.0003, 0.0006, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
)
STAGE_BUCKETS = (0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RELEASES = ("size", "preferred", "tokens", "padding", "share", "drained")
RATIO_BUCKETS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)

BUILD = Info("gristmill_build", "What is running.")

CALLS_STARTED = Counter("grpc_server_call_started", "Calls begun (gRFC A66).", ["grpc_method"])
CALL_DURATION = Histogram(
    "grpc_server_call_duration_seconds",
    "Duration of calls (gRFC A66).",
    ["grpc_method", "grpc_status"],
    buckets=CALL_BUCKETS,
)
CALLS_IN_FLIGHT = Gauge("gristmill_calls_in_flight", "Calls begun and not ended.")

ITEMS = Counter(
    "gristmill_items",
    "Items by outcome: completed, failed, expired, cancelled.",
    ["model", "version", "outcome"],
)
REJECTED = Counter("gristmill_rejected", "Messages refused at admission.", ["model", "reason"])
QUEUE_ITEMS = Gauge("gristmill_queue_items", "Items admitted and not answered.", ["model"])
QUEUE_LIMIT = Gauge("gristmill_queue_limit_items", "Items that are admitted at most.", ["model"])
QUEUE_SECONDS = Histogram(
    "gristmill_queue_seconds", "Time in the queue.", ["model"], buckets=STAGE_BUCKETS
)
BATCH_SECONDS = Histogram(
    "gristmill_batch_assembly_seconds", "Padding a batch.", ["model"], buckets=STAGE_BUCKETS
)
COMPUTE_SECONDS = Histogram(
    "gristmill_compute_seconds", "Running a batch.", ["model"], buckets=STAGE_BUCKETS
)
BATCH_SIZE = Histogram("gristmill_batch_size", "Items in a batch.", ["model"], buckets=SIZE_BUCKETS)
BATCH_PADDING = Histogram(
    "gristmill_batch_padding_ratio",
    "Share of a batch that is padding.",
    ["model"],
    buckets=RATIO_BUCKETS,
)
BATCHES_RELEASED = Counter(
    "gristmill_batches_released", "Batches by what closed them.", ["model", "reason"]
)
DEVICE_BUSY = Counter(
    "gristmill_device_busy_seconds", "Time in which a batch ran on the device.", ["device"]
)
MODELS = Gauge("gristmill_model_versions", "Versions in this process by state.", ["state"])
LOAD_SECONDS = Histogram(
    "gristmill_model_load_seconds", "Fetch, start and warm-up.", ["model"], buckets=CALL_BUCKETS
)
LOAD_FAILURES = Counter(
    "gristmill_model_load_failures", "Versions that could not be loaded.", ["model"]
)
MODEL_MEMORY = Gauge(
    "gristmill_model_memory_bytes", "What loaded versions hold of the memory budget."
)
SHADOW_ITEMS = Counter(
    "gristmill_shadow_items",
    "Items that a shadow version saw: agree, disagree, failed, dropped.",
    ["model", "version", "outcome"],
)
SHADOW_DIFFERENCE = Histogram(
    "gristmill_shadow_difference",
    "Largest difference of a probability between the shadow and what answered.",
    ["model", "version"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
)
REGISTRY_UP = Gauge("gristmill_registry_connected", "1 while the registry's Watch is open.")

REVISION = Gauge("gristmill_registry_revision", "Newest revision.")
WATCHERS = Gauge("gristmill_registry_watchers", "Open watches.")
UPLOADED = Counter("gristmill_registry_uploaded_bytes", "Bytes made durable.")

GEN_DURATION = Histogram(
    "gen_ai_server_request_duration_seconds",
    "Duration of a generation (OpenTelemetry GenAI).",
    ["gen_ai_request_model", "error_type"],
    buckets=[0.01 * 2**k for k in range(14)],
)
GEN_FIRST_TOKEN = Histogram(
    "gen_ai_server_time_to_first_token_seconds",
    "Time to the first token (OpenTelemetry GenAI).",
    ["gen_ai_request_model"],
    buckets=(
        0.001,
        0.005,
        0.01,
        0.02,
        0.04,
        0.06,
        0.08,
        0.1,
        0.25,
        0.5,
        0.75,
        1.0,
        2.5,
        5,
        7.5,
        10,
    ),
)
GEN_PER_TOKEN = Histogram(
    "gen_ai_server_time_per_output_token_seconds",
    "Time for each token after the first (OpenTelemetry GenAI).",
    ["gen_ai_request_model"],
    buckets=(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)
GEN_TOKENS = Counter(
    "gristmill_generator_tokens",
    "Tokens by kind: prompt, completion, cached (of the prompt).",
    ["model", "kind"],
)
GEN_RUNNING = Gauge("gristmill_generator_running", "Prompts in the engine.", ["model"])
GEN_WAITING = Gauge("gristmill_generator_waiting", "Prompts that wait for the engine.", ["model"])
GEN_ENGINE_WAITING = Gauge(
    "gristmill_generator_engine_waiting",
    "Prompts that the engine has taken and not begun.",
    ["model"],
)
GEN_ORPHANED = Gauge(
    "gristmill_generator_orphaned_steps",
    "Steps that still held an aborted prompt after the step that ends it, since the engine began.",
    ["model"],
)
GEN_CACHE = Gauge("gristmill_generator_cache_ratio", "Key-value cache in use, 0 to 1.", ["model"])

CACHE_HITS = Counter(
    "gristmill_cache_hits", "Items answered from the cache: memory, redis.", ["model", "level"]
)
CACHE_MISSES = Counter(
    "gristmill_cache_misses", "Items that were not in the cache: memory, redis.", ["model", "level"]
)
CACHE_SHARED = Counter(
    "gristmill_cache_shared", "Items answered by the computation of an equal one.", ["model"]
)
CACHE_BYTES = Gauge("gristmill_cache_bytes", "What cached answers take up in memory.")
CACHE_ENTRIES = Gauge("gristmill_cache_entries", "Answers cached in memory.")
CACHE_ERRORS = Counter(
    "gristmill_cache_errors",
    "What went wrong with the shared cache: timeout, unavailable, corrupt, refused, dropped.",
    ["reason"],
)

HTTP_DURATION = Histogram(
    "http_server_request_duration_seconds",
    "Duration of HTTP requests.",
    ["http_route", "http_request_method", "http_response_status_code"],
    buckets=CALL_BUCKETS,
)
RATE_LIMIT_ERRORS = Counter(
    "gristmill_rate_limit_errors", "Times that the shared rate limits could not be asked."
)
UPSTREAM_RETRIES = Counter(
    "gristmill_upstream_retries", "Calls tried again by the gateway.", ["upstream"]
)


def serve(host: str, port: int, service: str, version: str) -> int | None:
    """Open the metrics endpoint and return its port; None where `port` is -1."""
    BUILD.info({"service": service, "version": version, "python": platform.python_version()})
    if port < 0:
        return None
    server, _ = start_http_server(port, addr=host, registry=REGISTRY)
    return int(server.server_port)
