"""`python -m gateway`: reads the configuration and runs the HTTP process."""

import sys

from gateway.config import GatewayConfig
from gateway.memory import give_back_large
from gateway.server import HttpServer
from services.runtime import logs
from services.runtime.config import load
from services.runtime.server import main


def run() -> None:
    """Serve until a signal; exit 2 where it cannot begin."""
    config = load(GatewayConfig, sys.argv[1:])
    give_back_large()
    logs.configure("gateway", config.log_level, config.log_format)

    async def serve() -> None:
        try:
            server = HttpServer(config)
            await server.start()
        except (ValueError, OSError) as error:
            sys.stderr.write(f"configuration: {error}\n")
            raise SystemExit(2) from None
        await server.until_signal()

    main(serve)


if __name__ == "__main__":
    run()
