"""The confined process: one job from standard input, progress and its result to standard output.

It gives up memory, time, network and other programs before it opens any file of a model. What it
says is JSON, a line each: {"progress", "message"} and at last {"result"} or {"error"}.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.registry.worker.confine import Limits, confine
from services.registry.worker.folders import MODEL, OUT, TEMPORARY, Progress
from services.runtime.errors import WORKER_MISSING, GristmillError


def main() -> None:
    """Do the one job."""
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # A library that prints must not be taken for us.
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())

    def say(words: dict[str, Any]) -> None:
        said.write(json.dumps(words) + "\n")
        said.flush()

    try:
        folder = Path(job["folder"])
        # OpenVINO opens a GGUF for writing, though it only reads it.
        writable = [folder / OUT, folder / TEMPORARY, *(folder / MODEL).glob("*.gguf")]
        confine(Limits(**job["limits"]), writable, [folder])
        # Not before: a filter of system calls holds for the threads that begin after it.
        threading.Thread(target=_end_with_parent, daemon=True).start()
        say({"result": do(job, lambda done, message: say({"progress": done, "message": message}))})
    except GristmillError as error:
        kind = next(c.__name__ for c in type(error).__mro__ if c.__module__.endswith(".errors"))
        say({"error": {"kind": kind, "reason": error.reason_given, "message": error.message}})
    except ImportError as error:
        missing = f"this worker lacks {error.name}: install the extra `worker`"
        said_so = {"kind": "FailedPrecondition", "reason": WORKER_MISSING, "message": missing}
        say({"error": said_so})
    except MemoryError:
        say({"error": {"message": "the work needs more memory than it may use"}})
    said.close()
    # Not the ordinary way out: a library may wait for threads that a limit has killed.
    sys.stderr.flush()
    os._exit(0)


def do(job: dict[str, Any], progress: Progress) -> Any:
    """The result of a job, as JSON can hold it."""
    # Each imports what it needs: a registry without model libraries can still check files.
    folder = Path(job["folder"])
    if job["kind"] == "finalize":
        from services.registry.worker.validate import validate

        return validate(folder / MODEL, job, progress)
    from services.registry.worker import measure

    work: dict[str, Callable[[Path, dict[str, Any], Progress], Any]] = {
        "convert": measure.convert,
        "evaluate": measure.evaluate,
        "profile": measure.profile,
    }
    return work[job["kind"]](folder, job, progress)


def _end_with_parent() -> None:
    """Nobody waits for a result any more when the other end is closed."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
