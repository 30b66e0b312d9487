"""A caller at a steady low rate, as a process of its own: nothing that a test does slows it down.

`python -m tests.e2e.steady_caller PORT RATE`. It prints a line for each call: when it began, by the
clock that all processes share, how long it took, and its status; 0 where there was no answer.
"""

import http.client
import json
import sys
import time

PATH = "/classifier/v1/classify"
BODY = json.dumps(
    {
        "model": {"model": "iris"},
        "items": [{"floatFeatures": {"values": [5.1, 3.5, 1.4, 0.2]}}],
    }
).encode()
LIMIT_S = 10.0


def call(connection: http.client.HTTPConnection) -> int:
    """One call; its status."""
    try:
        connection.request("POST", PATH, BODY, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        return 0
    return answer.status


def main(port: int, rate: float) -> None:
    """Call until killed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    due = time.monotonic()
    while True:
        began = time.monotonic()
        status = call(connection)
        print(f"{began:.6f} {time.monotonic() - began:.6f} {status}", flush=True)
        # Those that it is late for it leaves out: it is steady, and never a crowd.
        due = max(due + 1 / rate, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
