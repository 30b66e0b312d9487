"""Whether to ask a server that may be away. Knows no server, and is told the time."""

PAUSE_S = 1.0


class Breaker:
    """After a failure nobody asks for a pause; then one does, once in every pause, until it works.

    A try that nobody reports on blocks nothing: the next may try a pause later.
    """

    def __init__(self, pause_s: float = PAUSE_S) -> None:
        self._pause_s = pause_s
        self._until: float | None = None
        """When to ask again; None while all is well."""

    @property
    def well(self) -> bool:
        """Whether the last that is known is a success."""
        return self._until is None

    def allows(self, now: float) -> bool:
        """Whether to ask now."""
        if self._until is None:
            return True
        if now < self._until:
            return False
        self._until = now + self._pause_s
        return True

    def succeeded(self) -> bool:
        """The server answered in time; whether that is news."""
        news = self._until is not None
        self._until = None
        return news

    def failed(self, now: float) -> bool:
        """It did not; whether that is news."""
        if self._until is not None:
            return False
        self._until = now + self._pause_s
        return True
