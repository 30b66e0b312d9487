"""Which versions of which models run in this process: load, warm up, switch, drain, unload.

Follows a catalog. A version takes over only once it is ready; a version that nothing points to any
more finishes what it has and goes. One that cannot be loaded changes nothing but its own state.
Knows no wire: `fetch` brings the files and `start` makes them run.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic

import structlog

from services.inference import absence
from services.inference.loaded import Key, Loaded, RunnerT, Use, Wanted
from services.inference.manifest import Manifest
from services.inference.memory import Budget
from services.inference.pointers import Pointers
from services.runtime import metrics
from services.runtime.catalog import Catalog, ModelEntry, VersionEntry
from services.runtime.deadline import Deadline
from services.runtime.errors import (
    Draining,
    FailedPrecondition,
    GristmillError,
    ModelAmbiguous,
    ModelNotReady,
    UpstreamUnavailable,
)

_log = structlog.get_logger()


class Serving(Generic[RunnerT]):
    """The versions of this process, and which of them an alias means now."""

    def __init__(
        self,
        task: str,
        fetch: Callable[[VersionEntry], Awaitable[Path]],
        start: Callable[[VersionEntry, Manifest, Path], Awaitable[RunnerT]],
        only: frozenset[str] = frozenset(),
        on_health: Callable[[str, bool | None], None] = lambda model, serving: None,
        retry_s: float = 5.0,
        budget: Budget | None = None,
        *,
        shadows: bool = False,
        make_room: bool = False,
    ) -> None:
        """`make_room`: where a version does not fit beside the one that it replaces, that one goes
        first, and calls wait meanwhile."""
        self._task = task
        self._fetch = fetch
        self._start = start
        self._only = only
        self._on_health = on_health
        self._retry_s = retry_s
        self._budget = held = budget or Budget()
        metrics.MODEL_MEMORY.set_function(lambda: held.held_bytes)
        self._shadows = shadows
        self._make_room = make_room
        self._replacing: set[str] = set()
        """Models whose old version has gone to make room for one that is not ready yet."""
        self._turn = asyncio.Event()
        """Set, and replaced by another, whenever something may have become ready."""
        self._catalog = Catalog()
        self._loaded: dict[Key, Loaded[RunnerT]] = {}
        self._pointers = Pointers()
        self._put_away: set[Key] = set()
        """Unloaded by hand; version 0 means whatever version the model gets."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: set[str] = set()
        self._closing = False
        self._freed = asyncio.Event()
        self.synced = asyncio.Event()
        """Set when every model that should be served has been tried once."""

    def models(self) -> list[Loaded[RunnerT]]:
        """Every version here, by model and number."""
        return [self._loaded[key] for key in sorted(self._loaded)]

    def aliases_of(self, key: Key) -> list[str]:
        """The aliases that mean this version here."""
        return self._pointers.aliases_of(key)

    def use(self, wanted: Wanted) -> "Use[RunnerT]":
        """The version that `wanted` means now; it is not unloaded within the `with`."""
        loaded = self._resolve(wanted)
        shadow = self._pointers.shadow(loaded.key, wanted) if self._shadows else None
        if shadow is None or not self._is_ready(shadow):
            return Use(loaded)
        return Use(loaded, self._loaded[shadow])

    async def ready(self, wanted: Wanted, deadline: Deadline) -> "Use[RunnerT]":
        """The same; a call to a model that is being replaced waits for the new version."""
        while True:
            try:
                return self.use(wanted)
            except ModelNotReady:
                if not self._replacing or (wanted.model and wanted.model not in self._replacing):
                    raise
                remaining_s = max(0.0, deadline.remaining(time.monotonic()))
                waiting = asyncio.timeout(remaining_s)
                with suppress(TimeoutError):
                    async with waiting:
                        await self._turn.wait()
                if waiting.expired():
                    raise

    async def update(self, catalog: Catalog) -> None:
        """The registry says something new: load what is missing, then switch and drain."""
        if self._closing:
            return
        self._catalog = catalog
        wanted = catalog.wanted(self._task, self._only)
        missing = [
            entry
            for model in wanted.values()
            for entry in self._pointed_at(model)
            if entry.model and self._must_load(entry)
        ]
        for entry in missing:
            self._loaded[(entry.model, entry.version)] = Loaded(entry)
            self._spawn(self._load(self._loaded[(entry.model, entry.version)]))
        self._settle()

    async def load(self, wanted: Wanted) -> Loaded[RunnerT]:
        """Load by hand what a reference means; returns one when all are ready, raises why not."""
        known = absence.known(self._catalog, self._task, wanted, self._loaded)
        model = known[0].model
        if not wanted.version and not wanted.alias:
            self._put_away = {key for key in self._put_away if key[0] != model}
        self._put_away -= {(model, 0), *((model, entry.version) for entry in known)}
        loading = [self._begin(entry) for entry in known]
        await self.update(self._catalog)  # what else points into the model is wanted again
        for loaded in loading:
            await loaded.tried.wait()
        self._settle()
        for loaded in loading:
            if loaded.state != "ready":
                raise ModelNotReady(
                    f"{model} version {loaded.entry.version}: {loaded.reason}",
                    metadata={"state": loaded.state},
                )
        return loading[0]

    def _begin(self, entry: VersionEntry) -> Loaded[RunnerT]:
        """The version, being loaded where it is not; nothing may point to it, and it stays."""
        key = (entry.model, entry.version)
        loaded = self._loaded.get(key)
        if loaded is None or loaded.state in ("failed", "unloaded"):
            pointed_at = self._catalog.models[entry.model].pointed_at(shadows=self._shadows)
            by_hand = entry.version not in pointed_at
            loaded = self._loaded[key] = Loaded(entry, by_hand=by_hand)
            # A task of its own: a caller that gives up must not leave it half loaded.
            self._spawn(self._load(loaded))
        return loaded

    async def unload(self, wanted: Wanted) -> None:
        """Unload by hand; it stays so until it is loaded by hand or the process restarts."""
        keys = [
            key
            for key in self._loaded
            if key[0] == wanted.model
            and (not wanted.version or key[1] == wanted.version)
            and (not wanted.alias or wanted.alias in self.aliases_of(key))
        ]
        if not keys:
            raise self._absent(wanted)
        self._put_away.update(keys)
        if not wanted.version and not wanted.alias:
            self._put_away.add((wanted.model, 0))
        leaving = [self._spawn(self._unload(self._loaded[key], keep=True)) for key in keys]
        await asyncio.shield(asyncio.gather(*leaving))

    async def close(self) -> None:
        """End everything."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for loaded in self._loaded.values():
            if loaded.runner is not None:
                await loaded.runner.close()
                self._budget.give_back(loaded)

    def _pointed_at(self, model: ModelEntry) -> list[VersionEntry]:
        numbers = sorted(model.pointed_at(shadows=self._shadows))
        return [model.versions[n] for n in numbers if n in model.versions]

    def _must_load(self, entry: VersionEntry) -> bool:
        key = (entry.model, entry.version)
        here = self._loaded.get(key)
        missing = here is None or here.state == "unloaded"
        return missing and not self._put_away & {key, (entry.model, 0)}

    def _resolve(self, wanted: Wanted) -> Loaded[RunnerT]:
        model = wanted.model or self._only_model()
        version = wanted.version
        if not version:
            version = self._pointers.chosen(model, wanted)
        loaded = self._loaded.get((model, version))
        if loaded is not None and loaded.state == "ready":
            return loaded
        raise self._absent(Wanted(model, wanted.version, wanted.alias))

    def _only_model(self) -> str:
        names = sorted({key[0] for key, one in self._loaded.items() if one.state == "ready"})
        if len(names) == 1:
            return names[0]
        if not names:
            raise ModelNotReady("no model is ready yet", metadata={"state": "loading"})
        raise ModelAmbiguous(
            f"name one of the models served: {', '.join(names)}",
            metadata={"models": ",".join(names)},
        )

    def _absent(self, wanted: Wanted) -> GristmillError:
        """Why a model cannot answer."""
        if self._closing:
            return Draining("this server is shutting down")
        return absence.why(self._catalog, self._task, wanted, self._loaded)

    async def _load(self, loaded: Loaded[RunnerT]) -> None:
        entry, started = loaded.entry, time.monotonic()
        loaded.starting = True
        try:
            folder = await self._fetch(entry)
            loaded.manifest = await asyncio.to_thread(Manifest.read, folder)
            await self._take_memory(loaded, loaded.manifest)
            runner = await self._start(entry, loaded.manifest, folder)
        except Exception as error:
            if loaded.state == "loading":
                loaded.state, loaded.reason = "failed", _said(error)
            self._give_memory_back(loaded)
            metrics.LOAD_FAILURES.labels(entry.model).inc()
            _log.exception("model failed to load", model=entry.model, version=entry.version)
            if isinstance(error, UpstreamUnavailable):
                self._spawn(self._load_later(loaded))
        else:
            if loaded.state == "loading":
                loaded.runner = runner
                loaded.state, loaded.ready_time = "ready", datetime.now(UTC)
                seconds = time.monotonic() - started
                metrics.LOAD_SECONDS.labels(entry.model).observe(seconds)
                _log.info("model ready", model=entry.model, version=entry.version, seconds=seconds)
            else:  # unloaded by hand meanwhile
                await runner.close()
                self._give_memory_back(loaded)
        loaded.starting = False
        loaded.tried.set()
        self._replacing.discard(entry.model)
        self._settle()

    async def _take_memory(self, loaded: Loaded[RunnerT], manifest: Manifest) -> None:
        """Hold what the version takes; what is draining is waited for, what serves is not moved."""
        size = manifest.memory_bytes or sum(a.size_bytes for a in loaded.entry.artifacts)
        while not self._budget.take(loaded, size):
            self._replace(loaded)
            draining = [one for one in self._loaded.values() if one.state == "draining"]
            loaded.no_memory = not draining
            if not draining:
                raise FailedPrecondition(
                    f"needs {size / 2**20:.1f} MiB; {self._budget.held_bytes / 2**20:.1f} of "
                    f"{self._budget.limit_bytes / 2**20:.1f} MiB are taken by other versions"
                )
            self._freed.clear()
            await self._freed.wait()

    def _replace(self, loaded: Loaded[RunnerT]) -> None:
        """Drain what the version replaces, where it may have its place before it is ready."""
        model = loaded.key[0]
        entry = self._catalog.models.get(model)
        if not self._make_room or entry is None:
            return
        pointed_at = entry.pointed_at(shadows=self._shadows)
        if loaded.key[1] not in pointed_at:
            return  # loaded by hand: it replaces nothing
        for one in list(self._loaded.values()):
            leaves = one.key[0] == model and one.key[1] not in pointed_at and not one.by_hand
            if leaves and one.state == "ready":
                self._replacing.add(model)
                one.state = "draining"
                self._spawn(self._unload(one, keep=False))

    def _give_memory_back(self, loaded: Loaded[RunnerT]) -> None:
        if not self._budget.give_back(loaded):
            return
        self._freed.set()
        for one in self._loaded.values():
            if one.no_memory and one is not loaded and one.state == "failed":
                self._again(one)

    async def _load_later(self, loaded: Loaded[RunnerT]) -> None:
        """The registry did not send the files: that passes, unlike what is wrong with a model."""
        await asyncio.sleep(self._retry_s)
        if self._loaded.get(loaded.key) is loaded and loaded.state == "failed":
            self._again(loaded)

    def _again(self, loaded: Loaded[RunnerT]) -> None:
        """Try once more to load what could not be loaded; whoever asks for it waits for that."""
        loaded.state, loaded.reason, loaded.no_memory = "loading", "", False
        loaded.tried.clear()
        self._spawn(self._load(loaded))

    async def _unload(self, loaded: Loaded[RunnerT], *, keep: bool) -> None:
        """Drain a version: its aliases no longer mean it, its users finish, it closes."""
        loaded.state = "draining"
        self._settle()
        while loaded.users:
            loaded.idle.clear()
            await loaded.idle.wait()
        if loaded.runner is not None:
            await loaded.runner.close()
            loaded.runner = None
        if not loaded.starting:  # what is being started gives back when that has ended
            self._give_memory_back(loaded)
        loaded.state = "unloaded"
        if not keep:
            self._loaded.pop(loaded.key, None)
        _log.info("model unloaded", model=loaded.key[0], version=loaded.key[1])
        # It may be wanted again since: what drains cannot be loaded beside itself.
        await self.update(self._catalog)

    def _settle(self) -> None:
        """Bring aliases, health and metrics in line with what is ready; drain the rest."""
        wanted = self._catalog.wanted(self._task, self._only)
        self._pointers.settle(wanted, self._is_ready)
        self._drain_unused(wanted)
        self._tell(wanted)
        self._turn.set()
        self._turn = asyncio.Event()

    def _is_ready(self, key: Key) -> bool:
        loaded = self._loaded.get(key)
        return loaded is not None and loaded.state == "ready"

    def _drain_unused(self, wanted: dict[str, ModelEntry]) -> None:
        for key, loaded in list(self._loaded.items()):
            model, version = key
            needed = (
                loaded.by_hand
                or self._pointers.mean(key)
                or (model in wanted and version in wanted[model].pointed_at(shadows=self._shadows))
            )
            if loaded.state == "ready" and not needed and not self._closing:
                loaded.state = "draining"
                self._spawn(self._unload(loaded, keep=False))
            elif loaded.state == "failed" and not needed:
                del self._loaded[key]

    def _tell(self, wanted: dict[str, ModelEntry]) -> None:
        """Health by model, and metrics by state."""
        known = {model for model, _ in self._loaded} | set(wanted)
        for model in known:
            serving = any(k[0] == model and self._is_ready(k) for k in self._loaded)
            self._on_health(model, serving)
        names = set(known)
        for model, version in self._loaded:
            name = f"{model}/versions/{version}"
            self._on_health(name, self._is_ready((model, version)))
            names.add(name)
        for name in self._told - names:
            self._on_health(name, None)
        self._told = names
        for state in ("loading", "ready", "draining", "failed", "unloaded"):
            count = sum(1 for one in self._loaded.values() if one.state == state)
            metrics.MODELS.labels(state).set(count)
        if not any(one.state == "loading" for one in self._loaded.values()):
            self.synced.set()

    def _spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _said(error: Exception) -> str:
    """What may be told of a failed load: our own words, else only the kind of error."""
    return error.message if isinstance(error, GristmillError) else type(error).__name__
