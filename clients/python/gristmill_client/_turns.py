"""What is under way in a conversation: its turns by id, and what has come of each.

Waits for nothing and makes no call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gristmill.generator.v1 import generator_service_pb2 as pb

from gristmill_client import _errors
from gristmill_client import _generate_messages as messages
from gristmill_client._messages import checked_id, checked_timeout
from gristmill_client._text import TextSoFar
from gristmill_client.completion import ConversationOptions, TurnOptions
from gristmill_client.errors import GristmillError, Unavailable

# Turns whose end nobody has read: of any number of them all but the last were cancelled.
MAX_UNDER_WAY = 64

Failure = Callable[[], GristmillError]


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for a turn that says nothing else."""

    timeout_s: float
    options: ConversationOptions

    def __post_init__(self) -> None:
        """What is wrong is told before anything is sent. Raises ValueError."""
        self._seconds(None)

    def turn(
        self,
        said: messages.Said,
        turn_id: str | None,
        timeout: float | None,
        options: TurnOptions,
    ) -> pb.Turn:
        """The turn, with the id "" if none was given. Raises TypeError, ValueError."""
        turn = messages.turn(said, self.options, options)
        turn.id = checked_id(turn_id)
        turn.timeout.FromNanoseconds(round(self._seconds(timeout) * 1e9))
        return turn

    def _seconds(self, timeout: float | None) -> float:
        return checked_timeout(timeout, self.timeout_s, "a turn has")


class AnswerSoFar(TextSoFar):
    """The running result of a turn, and what of it has not been given yet.

    `turn_id` is that of the turn. The attributes are TextSoFar's; they tell what has been received,
    which may be more than the iteration has given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.turn_id = ""
        self._pieces: deque[str] = deque()
        self._over = False
        self._cancelled = False
        self._failure: Failure | None = None

    @property
    def _settled(self) -> bool:
        """Whether `_take` knows without waiting what comes next."""
        return bool(self._pieces) or self._over

    def _take(self) -> str | None:
        """The next piece; None at the end. Raises why the turn failed, each time."""
        if self._pieces:
            return self._pieces.popleft()
        if self._failure is not None:
            raise self._failure()
        return None

    def _hear(self, response: pb.GenerateBidiResponse) -> None:
        if response.HasField("error"):
            self._end(partial(_errors.from_status, response.error))
        elif (piece := self._feed(response)) is not None:
            if not self._over:
                self._pieces.append(piece)
        elif response.HasField("finished"):
            self._over = True

    def _end(self, failure: Failure | None = None) -> None:
        """Nothing more is given than what came before."""
        if not self._over:
            self._over = True
            self._failure = failure

    def _drop(self) -> None:
        """Nothing more is given."""
        self._pieces.clear()
        self._end()


class Turns:
    """The turns that have no end yet, in the order sent.

    Its owner takes a lock around each call, or runs on one loop.
    """

    def __init__(self) -> None:
        self._under_way: dict[str, AnswerSoFar] = {}
        self._failure: Failure | None = None
        self._closed = False
        self._number = 0

    def begin(self, turn: pb.Turn, answer: AnswerSoFar) -> pb.GenerateBidiRequest | None:
        """What to send; gives the turn an id if it has none. Raises RuntimeError, ValueError.

        None: the stream has ended, and the answer with it.
        """
        if self._closed:
            raise RuntimeError("the conversation is closed")
        if turn.id in self._under_way:
            raise ValueError(f"the id {turn.id!r} is under way already")
        if len(self._under_way) >= MAX_UNDER_WAY:
            raise RuntimeError(
                f"nothing was sent: {MAX_UNDER_WAY} turns are under way; iterate over an answer"
            )
        answer.turn_id = turn.id = turn.id or self._new_id()
        if self._failure is not None:
            answer._end(self._failure)
            return None
        self._under_way[turn.id] = answer
        return pb.GenerateBidiRequest(turn=turn)

    def cancel(self, answer: AnswerSoFar | None = None) -> pb.GenerateBidiRequest | None:
        """What to send to end an answer, or the last; None: it has ended, or will."""
        found = answer or next(reversed(self._under_way.values()), None)
        if found is None or found._cancelled or self._under_way.get(found.turn_id) is not found:
            return None
        found._cancelled = True
        return pb.GenerateBidiRequest(cancel=pb.CancelTurn(id=found.turn_id))

    def hear(self, response: pb.GenerateBidiResponse) -> None:
        """Takes a message to the answer that it belongs to."""
        answer = self._under_way.get(response.turn_id)
        if answer is None:
            return
        answer._hear(response)
        if response.WhichOneof("event") in ("finished", "error"):
            del self._under_way[answer.turn_id]

    def fail(self, failure: Failure) -> None:
        """The stream has ended, and all that is under way with it."""
        self._failure = failure
        while self._under_way:
            self._under_way.popitem()[1]._end(failure)

    def close(self) -> None:
        """Nobody wants any more of it."""
        self._closed = True
        while self._under_way:
            self._under_way.popitem()[1]._end()

    def _new_id(self) -> str:
        while True:
            self._number += 1
            if (found := str(self._number)) not in self._under_way:
                return found


def unfinished() -> Unavailable:
    return Unavailable("the generator ended the conversation before its answers")
