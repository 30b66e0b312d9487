"""Pushes every model folder below a folder, points `live` to each, waits until all are served.

Addresses and token come from GRISTMILL_REGISTRY, _CLASSIFIER, _GENERATOR and _TOKEN.
"""

import os
import sys
import time
from pathlib import Path

import yaml
from gristmill_client import Client
from gristmill_client.errors import GristmillError

from services.runtime.probe import check_grpc

SERVERS = {"classification": "GRISTMILL_CLASSIFIER", "generation": "GRISTMILL_GENERATOR"}
LOAD_S = 300.0
POLL_S = 0.5
TRY_S = 5.0


def main(folder: Path) -> int:
    """Push, then wait."""
    manifests = sorted(folder.glob("*/model.yaml"))
    if not manifests:
        sys.stderr.write(f"{folder} holds no model\n")
        return 1
    served: list[tuple[str, str]] = []
    try:
        with Client(timeout=120.0) as client:
            for file in manifests:
                version = client.models.push(file.parent, alias="live")
                manifest = yaml.safe_load(file.read_text(encoding="utf-8"))
                served.append((os.environ[SERVERS[manifest["task"]]], version.model))
                sys.stdout.write(f"{version.model}: version {version.version} is live\n")
    except GristmillError as error:
        sys.stderr.write(f"push: {error}\n")
        return 1
    deadline = time.monotonic() + LOAD_S
    return max(_await_served(address, f"models/{model}", deadline) for address, model in served)


def _await_served(address: str, name: str, deadline: float) -> int:
    while (said := check_grpc(address, name, TRY_S)) != "SERVING":
        if time.monotonic() > deadline:
            sys.stderr.write(f"{name} is not served by {address}: {said}\n")
            return 1
        time.sleep(POLL_S)
    sys.stdout.write(f"{name} is served by {address}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
