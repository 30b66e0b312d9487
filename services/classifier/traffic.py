"""Which version answers a call: resolved once, held while it answers. Knows no wire."""

from typing import Protocol, Self

from services.classifier.answers import Answer, Asked, Given, OnAnswer
from services.classifier.classifier import Classifier
from services.classifier.shadow import Shadows
from services.inference.loaded import Use, Wanted
from services.inference.serving import Serving
from services.runtime.errors import ModelNotReady


class Target:
    """The version that a call was given to, held for as long as a `with` lasts."""

    __slots__ = ("_shadows", "_use", "loaded", "runner")

    def __init__(self, use: Use[Classifier], shadows: Shadows) -> None:
        self._use = use
        self._shadows = shadows
        self.loaded = use.loaded
        runner = use.loaded.runner
        if runner is None:  # resolved versions are ready, and ready ones have a runner
            raise ModelNotReady("the model is not ready", metadata={"state": "loading"})
        self.runner = runner

    def __enter__(self) -> Self:
        self._use.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._use.__exit__()

    @property
    def model(self) -> str:
        """The model that answers."""
        return self.loaded.entry.model

    @property
    def version(self) -> int:
        """The version that answers."""
        return self.loaded.entry.version

    async def classify(
        self, items: Given, asked: Asked, on_answer: OnAnswer | None = None
    ) -> list[Answer]:
        """An answer for each item, in their order."""
        answers = await self.runner.classify(items, asked, on_answer)
        if self._use.shadow is not None:
            self._shadows.watch(self._use.shadow, items, answers)
        return answers


class Stream(Protocol):
    """A call that would not end by itself."""

    def drain(self) -> None:
        """Take no more, finish what is in hand, end."""
        ...


class Traffic:
    """Gives calls to versions, and knows the streams that a drain must end."""

    def __init__(self, serving: Serving[Classifier]) -> None:
        self._serving = serving
        self._shadows = Shadows()
        self.streams: set[Stream] = set()
        self.draining = False

    def drain(self) -> None:
        """End the open streams."""
        self.draining = True
        for stream in list(self.streams):
            stream.drain()

    async def close(self) -> None:
        """Give up what nobody waits for."""
        await self._shadows.close()

    def use(self, wanted: Wanted) -> Target:
        """The version that `wanted` means now; it is not unloaded within the `with`."""
        return Target(self._serving.use(wanted), self._shadows)
