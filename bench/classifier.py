"""The classifier against the bare limits of this machine, in one run.

    python -m bench.classifier [--part overhead|compute|waiting] [--calls 20000] [--texts 1200]

1. overhead: four numbers to three classes, ours against a bare no-op on each transport.
2. compute: real sentences of mixed length, one a call, against the model in a loop with no server,
   and against other ways of batching in the same server.
3. waiting: one caller at a time, against the bare call of the model.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.limit import Limit
from bench.measuring import Figures, Process, need, quiet, request

CALLERS = (1, 16, 64)
HEAD = f"{'':34}{'calls/s':>10}{'items/s':>10}{'CPU s/1000':>12}{'p50 ms':>9}{'p99 ms':>9}"


def row(name: str, figures: Figures, note: str = "") -> None:
    """Print one line."""
    print(
        f"{name:34}{figures.calls_per_s:10.0f}{figures.items_per_s:10.0f}"
        f"{figures.cpu_s_per_1000:12.3f}{figures.p50_ms:9.2f}{figures.p99_ms:9.2f}  {note}",
        flush=True,
    )


def measured(mode: str, transport: str, model: str, load: Callable[[Process], Figures]) -> Figures:
    """One load on a server of its own, after a warm-up that is the same load."""
    process = Process(mode, transport, model)
    try:
        load(process)
        return load(process)
    finally:
        process.stop()


def overhead(calls: int) -> None:
    """What the server adds to a call that computes next to nothing."""
    message = request("iris")
    for transport in ("grpcio", "native"):
        print(f"\noverhead on {transport}: one item a call, load {quiet():.1f} before\n{HEAD}")
        for callers in CALLERS:
            count = max(500, calls * callers // 64)
            found = {}
            for mode in ("bare", "ours"):
                found[mode] = measured(
                    mode,
                    transport,
                    "iris",
                    partial(Process.h2load, message=message, calls=count, callers=callers),
                )
                row(f"{mode}, {callers} callers", found[mode])
            bare, ours = found["bare"], found["ours"]
            print(
                f"{'':6}ours to bare: {ours.calls_per_s / bare.calls_per_s:.2f} of the calls, "
                f"{ours.cpu_s_per_1000 - bare.cpu_s_per_1000:.3f} ms more CPU a call, "
                f"p50 {ours.p50_ms / bare.p50_ms:.2f} times"
            )
        many(transport, calls, ours.items_per_s)
        profile(transport, calls // 4)


def many(transport: str, calls: int, unary: float) -> None:
    """Several items in a message."""
    batches = request("iris", 256)
    found = measured("ours", transport, "iris", lambda p: p.h2load(batches, calls // 50, 16))
    items = found.items_per_s * 256
    row("ours, 256 items a call", found, f"{items:.0f} items/s, {items / unary:.1f} x unary")
    found = measured(
        "ours",
        transport,
        "iris",
        lambda p: p.load("iris", calls // 8, 8, items=32, kind="bidi", ahead=4),
    )
    row("ours, bidi, 32 items a message", found, f"{found.items_per_s / unary:.1f} x unary")


def profile(transport: str, calls: int) -> None:
    """Where the time of one call goes in our own event loop."""
    process = Process("ours", transport, "iris", calls)
    process.h2load(request("iris"), calls, 64)
    print("where it goes (profiled, so slower): own us/call, times/call, function")
    for own, times, where in json.loads(process.stop().strip().splitlines()[-1]):
        print(f"{own:10.1f}{times:8.2f}  {where}")


def compute(count: int) -> None:
    """Mixed lengths, where batching must earn its keep."""
    limit = Limit(count)
    best, tokens = limit.best_sorted()
    print(f"\ncompute: {count} texts, load {quiet():.1f} before; in this process, items/s:")
    print(f"  sorted within {64} that wait, cut at {tokens} tokens {best:8.1f}  <- the limit")
    print(f"  one by one, an instance for each core     {limit.one_by_one():8.1f}")
    for size in (8, 32):
        print(f"  padded batches of {size:2} in order of arrival  {limit.fifo(size):8.1f}")
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts"
        texts.write_text("\n".join(limit.texts))
        for callers in CALLERS:
            for mode in ("ours", "unbatched", "fifo-8", "fifo-32"):
                _compute(mode, callers, count * min(callers, 16) // 16, texts, best)
    print(f"the limit again: {limit.best_sorted()[0]:.1f} items/s")


def _compute(mode: str, callers: int, calls: int, texts: Path, limit: float) -> None:
    process = Process(mode, "native", "sentiment")
    try:
        process.load("sentiment", max(1, calls // 4), callers, texts=texts)
        names = ("gristmill_batch_padding_ratio_sum", "gristmill_batch_padding_ratio_count")
        before = [process.metric(name) for name in names]
        found = process.load("sentiment", calls, callers, texts=texts)
        padding, batches = (process.metric(n) - b for n, b in zip(names, before, strict=True))
    finally:
        process.stop()
    note = (
        f"{found.items_per_s / limit:.3f} of the limit, {calls / batches:.1f} items a batch, "
        f"padding {padding / batches:.3f} of a batch"
    )
    row(f"{mode}, {callers} callers", found, note)


def waiting(calls: int) -> None:
    """One caller at a time: what the server adds to the bare call of the model."""
    limit = Limit(40)
    text = sorted(limit.texts, key=len)[20]
    message = request("sentiment", text=text)
    print(f"\nwaiting: one caller, one text of {len(text)} characters, load {quiet():.1f} before")
    print(HEAD)
    for transport in ("grpcio", "native"):
        before = limit.alone_ms(text, calls)
        found = measured("ours", transport, "sentiment", lambda p: p.h2load(message, calls, 1))
        bare = (before + limit.alone_ms(text, calls)) / 2
        row(f"ours on {transport}", found, f"{found.p50_ms - bare:.2f} ms over {bare:.2f} bare")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("overhead", "compute", "waiting"))
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--texts", type=int, default=1200)
    options = parser.parse_args()
    need()
    if options.part in (None, "overhead"):
        overhead(options.calls)
    if options.part in (None, "compute"):
        compute(options.texts)
    if options.part in (None, "waiting"):
        waiting(max(50, options.calls // 40))


if __name__ == "__main__":
    main()
