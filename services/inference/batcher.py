"""The dynamic batcher: items with permits in, outcomes out. Knows no wire and no model.

One batcher serves one version of a model. Decisions are the scheduler's; here are the waiting
callers, the instances and the hand-over between them. Everything but `run` on an instance happens
on the event loop, so state changes need no lock.

What arrives in one turn of the loop is batched together at its end: an instance that is free takes
a batch then. While all compute, batches that later arrivals could not make fuller are formed and
padded ahead, for whichever instance is free first; they are given back when something more urgent
arrives. A batch that takes less than handing it to a thread would runs on the loop.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence

import structlog

from services.inference.backend import Instance
from services.inference.cost import CostModel
from services.inference.deadlines import Deadlines
from services.inference.items import Encoded, pad
from services.inference.manifest import Batching
from services.inference.meter import Meter
from services.inference.outcomes import OnItem, Outcome, Scored, Timings
from services.inference.queued import Counts, Message, Queued, queued
from services.inference.scheduler import Batch, Order, Scheduler
from services.inference.scoring import Outputs
from services.inference.workers import Ran, Work, Worker
from services.runtime.admission import Permit
from services.runtime.deadline import Clock, Deadline
from services.runtime.errors import BackendFailed, DeadlineExpired, Draining

# About what it takes to wake a thread, let it have the interpreter, and wake the loop again.
INLINE_S = 0.0002
_log = structlog.get_logger()


class Batcher:
    """Runs items on the instances of one model.

    `inline_s` is the longest that a batch may take of the event loop itself; 0: none does.
    `scores` says that callers want probabilities, which are then made beside the run.
    """

    def __init__(
        self,
        instances: Sequence[Instance],
        settings: Batching,
        fill: Mapping[str, int],
        meter: Meter,
        cost: CostModel | None = None,
        clock: Clock = time.monotonic,
        *,
        inline_s: float = 0.0,
        device: str = "cpu",
        scores: bool = True,
        multi_label: bool = False,
    ) -> None:
        self._settings = settings
        self._fill = dict(fill)
        self._clock = clock
        self._meter = meter
        self._cost = cost or CostModel()
        self._inline_s = inline_s
        self._scheduler = Scheduler(
            settings.max_batch_size,
            settings.max_batch_tokens,
            settings.max_overtakes,
            self._cost,
            settings.preferred_batch_sizes,
        )
        self._loop = asyncio.get_running_loop()
        self._ahead: list[Work] = []
        """Formed while every instance computes, the most urgent first."""
        self._ahead_from = 1
        self._arrivals = 0
        self._closing = False
        self._due = False
        self._delay: asyncio.TimerHandle | None = None
        self._settled = asyncio.Event()
        self._deadlines: Deadlines[Message] = Deadlines(clock, self._expire)
        self.counts = Counts()
        self._workers = [
            Worker(
                instance,
                self._fill,
                self._finished,
                device=device,
                scores=scores,
                multi_label=multi_label,
            )
            for instance in instances
        ]

    @property
    def instances(self) -> int:
        """How many batches run at once."""
        return len(self._workers)

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
        message = self._accept(items, permit.deadline.at, priority, on_item)
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
        own = sum([item.length for item in items])
        order: Order = (priority, deadline.at, self._arrivals + 1)
        waiting, tokens = self._scheduler.before(order)
        ahead = [work for work in self._ahead if work.batch.entries[0].order < order]
        return self._time_for(waiting + len(items), tokens + own, ahead)

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
        self._deadlines.close()
        for worker in self._workers:
            await worker.close()

    def _time_for(self, items: int, tokens: int, ahead: Sequence[Work]) -> float:
        batches = -(-items // self._settings.max_batch_size)
        seconds = self._cost.seconds(batches, tokens)
        for worker in self._workers:
            if worker.running is not None:
                whole = self._cost.seconds(1, worker.running.batch.padded_tokens)
                seconds += max(0.0, whole - (self._clock() - worker.since))
        for work in ahead:
            seconds += self._cost.seconds(1, work.batch.padded_tokens)
        return seconds / max(1, len(self._workers))

    def _accept(
        self, items: Sequence[Encoded], deadline: float, priority: int, on_item: OnItem | None
    ) -> Message:
        now = self._clock()
        count = len(items)
        message = Message(self._loop.create_future(), [None] * count, on_item, count)
        first = self._arrivals
        self._arrivals += count
        message.entries = [
            Queued(
                (priority, deadline, first + index),
                item.length,
                item.group,
                0,
                message,
                index,
                item,
                now,
            )
            for index, item in enumerate(items)
        ]
        for entry in message.entries:
            self._scheduler.push(entry)
        self.counts.submitted += count
        self.counts.pending += count
        self._deadlines.add(deadline, message)
        self._dispatch_soon()
        return message

    def _expire(self, message: Message) -> None:
        """The message's deadline has passed."""
        if not message.future.done():
            self._abandon(message, "expired")
            message.future.set_exception(DeadlineExpired("the deadline passed before the answer"))

    def _abandon(self, message: Message, outcome: str) -> None:
        """Nobody waits for this message any more: free what it holds in the queue, at once."""
        left = [entry for entry in message.entries if not entry.done]
        for entry in left:
            self._scheduler.remove(entry)
            entry.done = True
        self._close_message(message)
        self._settle(outcome, len(left))

    def _close_message(self, message: Message) -> None:
        message.entries = ()
        self._deadlines.forget()

    def _settle(self, outcome: str, count: int) -> None:
        if count:
            self.counts.pending -= count
            setattr(self.counts, outcome, getattr(self.counts, outcome) + count)
            self._meter.outcome(outcome, count)
        if not self.counts.pending:
            self._settled.set()

    def _give_back_overtaken(self) -> None:
        kept: list[Work] = []
        for work in self._ahead:
            if self._scheduler.precedes(work.batch):
                self._scheduler.restore(e for e in queued(work) if not e.done)
            else:
                kept.append(work)
        self._ahead = kept

    def _dispatch_soon(self) -> None:
        """At the end of this turn of the loop, when all that arrives in it is there."""
        if not self._due:
            self._due = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self, *, waited: bool = False) -> None:
        """Give every free instance a batch, then form full ones ahead for the busy."""
        self._due = False
        if self._ahead:
            self._give_back_overtaken()
        hold = not waited and self._holds()
        free = [worker for worker in self._workers if worker.running is None]
        for position, worker in enumerate(free):
            work = self._next(len(free) - position, hold=hold)
            if work is not None:
                self._begin(worker, work)
        busy = sum([worker.running is not None for worker in self._workers])
        while len(self._ahead) < busy and (work := self._form_ahead()):
            self._ahead.append(work)

    def _begin(self, worker: Worker, work: Work) -> None:
        whole = self._cost.seconds(1, work.batch.padded_tokens)
        if not self._inline_s or whole > self._inline_s:
            worker.start(work, self._clock())
            return
        worker.since = self._clock()
        self._tell(work, worker.run(work), worker.since)
        if self._scheduler or self._ahead:
            self._dispatch_soon()  # not now: what the network has brought comes first

    def _form_ahead(self) -> Work | None:
        """A full batch if there is one; looked for again only when twice as much waits."""
        if len(self._scheduler) < self._ahead_from:
            return None
        work = self._form(1, full_only=True)
        if work is not None:
            self._workers[0].prepare(work)
        self._ahead_from = 1 if work else 2 * len(self._scheduler)
        return work

    def _holds(self) -> bool:
        """Whether the model's settings say that only full batches start now."""
        delay_s = self._settings.max_queue_delay_ms / 1000
        if not delay_s or self._closing:
            return False
        if self._delay is None and len(self._scheduler):
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
        self._deadlines.pass_due()
        batch = self._scheduler.take(free, full_only=full_only)
        return self._padded(batch) if batch else None

    def _padded(self, batch: Batch) -> Work:
        started = self._clock()
        items = [entry.item for entry in batch.entries]  # type: ignore[attr-defined]  # queued ones
        try:
            inputs = pad(items, self._fill)
        except Exception:
            # Items that cannot stand together fail, or not, when each is run alone.
            inputs = {}
        return Work(batch, items, inputs, self._clock() - started)

    def _revived(self, work: Work) -> Work | None:
        """The batch without what died since it was formed; padded anew where something did."""
        self._deadlines.pass_due()
        entries = queued(work)
        alive = tuple([entry for entry in entries if not entry.done])
        if len(alive) == len(entries):
            return work
        return self._padded(Batch(alive, work.batch.released)) if alive else None

    def _finished(self, worker: Worker, work: Work, ran: Ran) -> None:
        """A batch comes back from a thread."""
        started, worker.running = worker.since, None
        self._ahead_from = 1
        # The next batch goes out first: the device must not wait while results are told.
        self._dispatch()
        self._tell(work, ran, started)

    def _tell(self, work: Work, ran: Ran, started: float) -> None:
        """Give the waiting their outcomes."""
        batch = work.batch
        self._cost.observe(batch.padded_tokens, ran.compute_s)
        self._meter.batch(batch, work.batch_s, ran)
        size = len(batch.entries)
        completed = failed = 0
        for position, entry in enumerate(queued(work)):
            if entry.done:
                continue
            entry.done = True
            queue_s = max(0.0, started - entry.arrived)
            self._meter.queued(queue_s)
            found = ran.together or ran.alone[position]
            if isinstance(found, Outputs):
                timings = Timings(queue_s, work.batch_s, ran.compute_s, size)
                index = position if ran.together else 0
                outcome: Outcome = Scored(found, index, timings)
                completed += 1
            else:
                _log.error("item failed in the backend", model=self._meter.model, exc_info=found)
                outcome = BackendFailed(f"{type(found).__name__}: {found}")
                failed += 1
            self._answer(entry, outcome)
        self._settle("completed", completed)
        self._settle("failed", failed)

    def _answer(self, entry: Queued, outcome: Outcome) -> None:
        message = entry.message
        message.outcomes[entry.index] = outcome
        message.left -= 1
        if message.on_item:
            try:
                message.on_item(entry.index, outcome)
            except Exception:
                # One caller's fault must not keep the others of the batch from their outcomes.
                _log.exception("outcome not taken", model=self._meter.model)
        if message.left == 0 and not message.future.done():
            self._close_message(message)
            message.future.set_result(message.outcomes)  # type: ignore[arg-type]  # all are there
