"""The conversation of the sync client: turns from any thread, each answer to one."""

from __future__ import annotations

import threading
from functools import partial
from queue import SimpleQueue
from typing import Self, Unpack

import grpc
from gristmill.generator.v1 import generator_service_pb2 as pb
from gristmill.generator.v1.generator_service_pb2_grpc import GeneratorServiceStub

from gristmill_client._generate_messages import Said
from gristmill_client._session import Session
from gristmill_client._streams import Closing
from gristmill_client._turns import AnswerSoFar, Defaults, Failure, Turns, unfinished
from gristmill_client.completion import TurnOptions


class Conversation(Closing):
    """Turns out, answers in, one at a time; the server keeps the history. See Client.converse.

    Any number of threads may say, cancel and iterate, each its own answer. `close()`, or leaving
    its `with`, cancels the stream: iterations end, and the server stops its work.
    """

    def __init__(
        self, session: Session, opening: pb.GenerateBidiRequest, defaults: Defaults
    ) -> None:
        self._session = session
        self._defaults = defaults
        self._turns = Turns()
        self._changed = threading.Condition()
        self._reading = False
        # Of turns, whose number is bounded. Holds no call, so that dropping this cancels it.
        self._sending: SimpleQueue[pb.GenerateBidiRequest | None] = SimpleQueue()
        self._sending.put(opening)
        self._call = session.stub("generator", GeneratorServiceStub).GenerateBidi(
            iter(self._sending.get, None), metadata=session.metadata
        )
        end = partial(self._sending.put, None)
        if not self._call.add_callback(end):
            end()

    def say(
        self,
        said: Said,
        *,
        turn_id: str | None = None,
        timeout: float | None = None,
        **options: Unpack[TurnOptions],
    ) -> Answer:
        """Sends a turn, a user's text or 1 to 128 messages, and gives its answer to iterate over.

        It ends the answer in hand, whose `finish_reason` is then "cancelled"; what that had said
        stays in the history. `turn_id`: at most 128 characters, or a new number. `timeout`
        (seconds, 1 ms to 1 hour, that the answer has from the turn's arrival) and the options are
        the conversation's own where they are left out. Does not wait. Raises ValueError for an id
        that is under way; RuntimeError after `close`, and while 64 turns wait for somebody to
        iterate. All else raises from the answer.
        """
        turn = self._defaults.turn(said, turn_id, timeout, options)
        answer = Answer(self)
        with self._changed:
            self._send(self._turns.begin(turn, answer))
        return answer

    def cancel(self) -> None:
        """Ends the answer in hand with the `finish_reason` "cancelled"; harmless without one.

        What it had said stays in the history.
        """
        self._cancel()

    def close(self) -> None:
        """Cancels the call; the server stops working on it. Harmless when it has ended."""
        with self._changed:
            self._turns.close()
            self._changed.notify_all()
        self._sending.put(None)
        self._call.cancel()

    def _cancel(self, answer: Answer | None = None) -> None:
        with self._changed:
            self._send(self._turns.cancel(answer))

    def _send(self, request: pb.GenerateBidiRequest | None) -> None:
        if request is not None:
            self._sending.put(request)

    def _next(self, answer: Answer) -> str | None:
        """The next piece; None at the end. One thread reads for all that wait."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: answer._settled or not self._reading)
                if answer._settled:
                    return answer._take()
                self._reading = True
            self._read()

    def _read(self) -> None:
        """Takes one message to whom it belongs."""
        response: pb.GenerateBidiResponse | None = None
        failure: Failure | None = None
        try:
            if (response := next(self._call, None)) is None:
                failure = unfinished
        except grpc.RpcError as error:
            failure = partial(self._session.error, "generator", error)
        finally:
            with self._changed:
                self._reading = False
                if response is not None:
                    self._turns.hear(response)
                elif failure is not None:
                    self._turns.fail(failure)
                self._changed.notify_all()


class Answer(AnswerSoFar, Closing):
    """The answer to a turn, as it comes: an iterator over its text. See Conversation.say.

    Pieces are never empty and join to `.text`; after the last, `.finish_reason`, `.usage` and
    `.timings` are known. What failed raises from the iteration: where the turn failed alone, the
    conversation goes on without it.
    """

    def __init__(self, conversation: Conversation) -> None:
        super().__init__()
        self._conversation = conversation

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if (piece := self._conversation._next(self)) is None:
            raise StopIteration
        return piece

    def close(self) -> None:
        """Ends this answer alone, and the iteration at once. Harmless when it has ended."""
        self._conversation._cancel(self)
        self._drop()
