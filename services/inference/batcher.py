"""The dynamic batcher: items with permits in, outcomes out. Knows no wire and no model.

One batcher serves one version of a model. Decisions are the scheduler's; here are the waiting
callers, the instances' threads and the hand-over between them. Everything but `run` on an instance
happens on the event loop, so state changes need no lock.

An instance that is free takes a batch at once. While all compute, batches that later arrivals could
not make fuller are formed and padded ahead, for whichever instance is free first; they are given
back when something more urgent arrives.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from services.inference.backend import Instance
from services.inference.cost import CostModel
from services.inference.items import Encoded, Scored, Timings, pad
from services.inference.manifest import Batching
from services.inference.meter import Meter
from services.inference.scheduler import Batch, Entry, Scheduler
from services.inference.workers import Row, Work, Worker
from services.runtime.admission import Permit
from services.runtime.deadline import Clock, Deadline
from services.runtime.errors import BackendFailed, DeadlineExpired, Draining, GristmillError

Outcome = Scored | GristmillError
OnItem = Callable[[int, Outcome], None]
_log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Message:
    """The items of one permit: they are accepted together and answered one by one."""

    future: asyncio.Future[list[Outcome]]
    outcomes: list[Outcome | None]
    entries: list[Entry]
    on_item: OnItem | None
    left: int
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class _Waiting:
    """What an entry carries: its item, and where its outcome goes."""

    message: _Message
    index: int
    item: Encoded
    arrived: float
    done: bool = False


@dataclass(slots=True)
class Counts:
    """Where every item ever submitted is: `submitted` is the sum of all the others."""

    submitted: int = 0
    completed: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    pending: int = 0


class Batcher:
    """Runs items on the instances of one model."""

    def __init__(
        self,
        instances: Sequence[Instance],
        settings: Batching,
        fill: Mapping[str, int],
        meter: Meter,
        cost: CostModel | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._settings = settings
        self._fill = dict(fill)
        self._clock = clock
        self._meter = meter
        self._cost = cost or CostModel()
        self._scheduler = Scheduler(
            settings.max_batch_size, settings.max_batch_tokens, settings.max_overtakes, self._cost
        )
        self._loop = asyncio.get_running_loop()
        self._ahead: list[Work] = []
        """Formed while every instance computes, the most urgent first."""
        self._arrivals = 0
        self._closing = False
        self._ahead_from = 1
        self._delay: asyncio.TimerHandle | None = None
        self._settled = asyncio.Event()
        self.counts = Counts()
        self._workers = [Worker(instance, self._fill, self._finished) for instance in instances]

    async def submit(
        self,
        items: Sequence[Encoded],
        permit: Permit,
        priority: int = 5,
        on_item: OnItem | None = None,
    ) -> list[Outcome]:
        """The outcome of each item, in their order; `on_item` hears of each as it is known.

        Raises DeadlineExpired when the permit's deadline passes before all are done. A cancelled
        caller's items are forgotten at once; those that run already are computed for nobody.
        """
        if self._closing:
            raise Draining("this version is being unloaded")
        if not items:
            return []
        message = self._accept(items, permit, priority, on_item)
        try:
            return await message.future
        except asyncio.CancelledError:
            self._abandon(message, "cancelled")
            raise

    def predicted_wait_s(
        self, items: Sequence[Encoded], deadline: Deadline, priority: int = 5
    ) -> float:
        """Time until these items would be done, or 0 while too little is known to say.

        What they would overtake, by class or by deadline, does not count.
        """
        if not self._cost.learned:
            return 0.0
        order = (priority, deadline.at, self._arrivals + 1)
        waiting, tokens = self._scheduler.before(order)
        ahead = [work for work in self._ahead if work.batch.entries[0].order < order]
        tokens += sum(item.length for item in items)
        return self._time_for(waiting + len(items), tokens, ahead)

    def drain_s(self) -> float:
        """Time until the queue has room for one batch more: the hint when it is full."""
        batch = min(max(1, len(self._scheduler)), self._settings.max_batch_size)
        mean = self._scheduler.tokens / max(1, len(self._scheduler))
        return max(0.01, self._time_for(batch, round(batch * mean), self._ahead))

    async def close(self) -> None:
        """Refuse new items, finish those that wait, end the threads."""
        self._closing = True
        self._dispatch(waited=True)
        while self.counts.pending:
            self._settled.clear()
            await self._settled.wait()
        for worker in self._workers:
            await worker.close()

    def _time_for(self, items: int, tokens: int, ahead: Sequence[Work]) -> float:
        now = self._clock()
        batches = -(-items // self._settings.max_batch_size)
        busy = sum(self._left(worker, now) for worker in self._workers)
        busy += sum(self._cost.seconds(1, work.batch.padded_tokens) for work in ahead)
        return (self._cost.seconds(batches, tokens) + busy) / max(1, len(self._workers))

    def _left(self, worker: Worker, now: float) -> float:
        if worker.running is None:
            return 0.0
        whole = self._cost.seconds(1, worker.running.batch.padded_tokens)
        return max(0.0, whole - (now - worker.since))

    def _accept(
        self, items: Sequence[Encoded], permit: Permit, priority: int, on_item: OnItem | None
    ) -> _Message:
        now = self._clock()
        message = _Message(self._loop.create_future(), [None] * len(items), [], on_item, len(items))
        for index, item in enumerate(items):
            self._arrivals += 1
            entry = Entry(
                (priority, permit.deadline.at, self._arrivals),
                item.length,
                _Waiting(message, index, item, now),
            )
            message.entries.append(entry)
            self._scheduler.push(entry)
        self.counts.submitted += len(items)
        self.counts.pending += len(items)
        message.timer = self._loop.call_later(
            max(0.0, permit.deadline.remaining(now)), self._expire, message
        )
        self._give_back_overtaken()
        self._dispatch()
        return message

    def _expire(self, message: _Message) -> None:
        if message.future.done():
            return
        self._abandon(message, "expired")
        message.future.set_exception(DeadlineExpired("the deadline passed before the answer"))

    def _abandon(self, message: _Message, outcome: str) -> None:
        """Nobody waits for this message any more: free what it holds in the queue, at once."""
        if message.timer:
            message.timer.cancel()
        for entry in message.entries:
            if not entry.payload.done:
                self._scheduler.remove(entry)
                self._settle(entry, outcome)

    def _settle(self, entry: Entry, outcome: str) -> None:
        entry.payload.done = True
        self.counts.pending -= 1
        setattr(self.counts, outcome, getattr(self.counts, outcome) + 1)
        if not self.counts.pending:
            self._settled.set()
        self._meter.outcome(outcome)

    def _give_back_overtaken(self) -> None:
        kept: list[Work] = []
        for work in self._ahead:
            if self._scheduler.precedes(work.batch):
                self._scheduler.restore(e for e in work.batch.entries if not e.payload.done)
            else:
                kept.append(work)
        self._ahead = kept

    def _dispatch(self, *, waited: bool = False) -> None:
        """Give every free instance a batch, then form full ones ahead for the busy."""
        hold = not waited and self._holds()
        free = [worker for worker in self._workers if worker.running is None]
        for position, worker in enumerate(free):
            work = self._next(len(free) - position, hold=hold)
            if work is not None:
                worker.start(work, self._clock())
        busy = sum(worker.running is not None for worker in self._workers)
        while len(self._ahead) < busy and (work := self._form_ahead()):
            self._ahead.append(work)

    def _form_ahead(self) -> Work | None:
        """A full batch if there is one; looked for again only when twice as much waits."""
        if len(self._scheduler) < self._ahead_from:
            return None
        work = self._form(1, full_only=True)
        self._ahead_from = 1 if work else 2 * len(self._scheduler)
        return work

    def _holds(self) -> bool:
        """Whether the model's settings say that only full batches start now."""
        delay_s = self._settings.max_queue_delay_ms / 1000
        if self._closing:
            return False
        if delay_s and self._delay is None and len(self._scheduler):
            self._delay = self._loop.call_later(delay_s, self._waited)
        return self._delay is not None

    def _waited(self) -> None:
        self._delay = None
        self._dispatch(waited=True)

    def _next(self, free: int, *, hold: bool) -> Work | None:
        """What a free instance starts: a batch formed ahead, else one of what waits."""
        while (
            work := self._ahead.pop(0)
            if self._ahead
            else self._form(1 if hold else free, full_only=hold)
        ):
            if alive := self._revived(work):
                return alive
        return None

    def _form(self, free: int, *, full_only: bool = False) -> Work | None:
        for entry in self._scheduler.expire(self._clock()):
            self._fail_expired(entry)
        batch = self._scheduler.take(free, full_only=full_only)
        return self._padded(batch) if batch else None

    def _padded(self, batch: Batch) -> Work:
        started = self._clock()
        items = [entry.payload.item for entry in batch.entries]
        inputs = pad(items, self._fill)
        return Work(batch, items, inputs, self._clock() - started)

    def _revived(self, work: Work) -> Work | None:
        """The batch without what died since it was formed; padded anew where something did."""
        now = self._clock()
        for entry in work.batch.entries:
            if not entry.payload.done and entry.deadline <= now:
                self._fail_expired(entry)
        alive = tuple(entry for entry in work.batch.entries if not entry.payload.done)
        if len(alive) == len(work.batch.entries):
            return work
        return self._padded(Batch(alive, work.batch.released)) if alive else None

    def _fail_expired(self, entry: Entry) -> None:
        """The message's own timer is about to say so; the item must not run meanwhile."""
        self._expire(entry.payload.message)

    def _finished(self, worker: Worker, work: Work, rows: list[Row], seconds: float) -> None:
        started, worker.running = worker.since, None
        self._cost.observe(work.batch.padded_tokens, seconds)
        self._meter.batch(work.batch, work.batch_s, seconds)
        self._ahead_from = 1
        # The next batch goes out first: the device must not wait while results are told.
        self._dispatch()
        for entry, row in zip(work.batch.entries, rows, strict=True):
            if not entry.payload.done:
                queue_s = max(0.0, started - entry.payload.arrived)
                self._meter.queued(queue_s)
                timings = Timings(queue_s, work.batch_s, seconds, len(work.batch.entries))
                self._answer(entry, row, timings)

    def _answer(self, entry: Entry, row: Row, timings: Timings) -> None:
        waiting: _Waiting = entry.payload
        outcome: Outcome
        if isinstance(row, Exception):
            _log.error("item failed in the backend", model=self._meter.model, exc_info=row)
            outcome = BackendFailed(f"{type(row).__name__}: {row}")
            self._settle(entry, "failed")
        else:
            outcome = Scored(row, timings)
            self._settle(entry, "completed")
        message = waiting.message
        message.outcomes[waiting.index] = outcome
        message.left -= 1
        if message.on_item:
            self._tell(message.on_item, waiting.index, outcome)
        if message.left == 0 and not message.future.done():
            if message.timer:
                message.timer.cancel()
            message.future.set_result([o for o in message.outcomes if o is not None])

    def _tell(self, on_item: OnItem, index: int, outcome: Outcome) -> None:
        """One caller's fault must not keep the others of the batch from their outcomes."""
        try:
            on_item(index, outcome)
        except Exception:
            _log.exception("outcome not taken", model=self._meter.model)
