"""OpenTelemetry set-up: spans leave this process only when an endpoint is set."""

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()


class Tracing:
    """Starts spans for calls, or does nothing where no endpoint is set."""

    def __init__(self, service: str, endpoint: str, sample_ratio: float) -> None:
        self._tracer: trace.Tracer | None = None
        if endpoint:
            self._tracer = self._build(service, endpoint, sample_ratio)

    def _build(self, service: str, endpoint: str, sample_ratio: float) -> trace.Tracer:
        # Imported here: a process that exports nothing should not pay for the exporter.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

        self._provider = TracerProvider(
            resource=Resource.create({"service.name": f"gristmill-{service}"}),
            sampler=ParentBasedTraceIdRatio(sample_ratio),
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        return self._provider.get_tracer("gristmill")

    @property
    def enabled(self) -> bool:
        """Whether spans go anywhere."""
        return self._tracer is not None

    def start(self, method: str, metadata: Mapping[str, str]) -> trace.Span | None:
        """The server span of a call under its caller's trace; None where nothing is exported."""
        if self._tracer is None:
            return None
        parent: Context = _PROPAGATOR.extract(metadata)
        service, _, name = method[1:].partition("/")
        return self._tracer.start_span(
            method[1:],
            context=parent,
            kind=trace.SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
        )

    @staticmethod
    def end(span: trace.Span | None, status: str) -> None:
        """End a span with the call's status."""
        if span is None:
            return
        span.set_attribute("rpc.grpc.status", status)
        if status not in ("OK", "CANCELLED"):
            span.set_status(trace.StatusCode.ERROR, status)
        span.end()

    def flush(self) -> None:
        """Send what is left; called once, at the end of the drain."""
        if self._tracer is not None:
            self._provider.shutdown()
