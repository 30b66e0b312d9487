"""Classifies any number of items on a bidi stream, on a new one after a cut; blocking."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice

from gristmill_client._backlog import Backlog
from gristmill_client._bidi_streams import ClassifyBidiStream
from gristmill_client.errors import GristmillError
from gristmill_client.prediction import Item, Prediction


def classify_many(
    open_stream: Callable[[], ClassifyBidiStream], items: Iterable[Item], backlog: Backlog
) -> Iterator[tuple[int, Prediction]]:
    new = iter(items)
    while True:
        with open_stream() as stream:
            while True:
                message = backlog.message(islice(new, backlog.wanted)) if stream.has_room else {}
                if not message and backlog.idle:
                    return _finish(stream)
                try:
                    if message:
                        stream.send_many(message)
                        continue
                    name, prediction = next(stream)
                except GristmillError as error:
                    pause = backlog.cut(error)
                    break
                yield backlog.answered(name), prediction
        time.sleep(pause)


def _finish(stream: ClassifyBidiStream) -> None:
    """Ends well, which leaving would not: to the server that is a caller who gave up."""
    stream.close_send()
    with suppress(GristmillError):
        next(stream, None)
