"""The jobs that run a model: evaluate, profile, convert; each from JSON to JSON. Knows no wire."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.registry.resources import PointRecord, ProfileRecord
from services.registry.worker.folders import DATA, DATA_FILE, MODEL, OUT, Progress


def evaluate(folder: Path, job: dict[str, Any], progress: Progress) -> dict[str, float]:
    """The metrics of a version on a data set."""
    from services.work.evaluate import evaluate as run

    prefix = job["request"].get("metric_prefix", "")
    return asyncio.run(run(folder / MODEL, folder / DATA / DATA_FILE, prefix, progress))


def profile(folder: Path, job: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The latency of a version on this host, and the figures to keep with it."""
    from services.work.profile import profile as run

    request = job["request"]
    found = run(folder / MODEL, request["batch_sizes"], request["lengths"], progress)
    record = ProfileRecord(
        model=job["model"],
        version=request["version"],
        fingerprint=found.fingerprint,
        points=tuple(
            PointRecord(batch_size=p.batch_size, length=p.length, p50_us=p.p50_us, p95_us=p.p95_us)
            for p in found.points
        ),
        measure_time=datetime.now(UTC),
    )
    return {"profile": record.model_dump(mode="json"), "metrics": found.metrics}


def convert(folder: Path, job: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """What a conversion made, in the folder `out`."""
    from services.work.convert import convert as run

    request = job["request"]
    kind = request["conversion"]
    made = run(folder / MODEL, folder / OUT, kind, request["max_difference"], progress)
    return {
        "conversion": kind,
        "files": made.files,
        "metrics": made.metrics,
        "facts": made.facts,
    }
