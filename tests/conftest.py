"""Fixtures that more than one folder of tests needs."""

import signal

import pytest
import structlog

from tests.harness import TRANSPORTS


def pytest_configure() -> None:
    """Log plainly, to where pytest shows it with a failure: structlog's own traces take long."""
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    # Who is started in the background ignores it, and so do all whom it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """Each HTTP/2 server in turn: what a test says must hold on both."""
    return str(request.param)
