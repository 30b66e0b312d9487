"""Resources and moments in one line for people; knows no command."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import typer

from gristmill_client.cli.output import moment
from gristmill_client.resources import (
    Alias,
    Change,
    Model,
    Resource,
    TrafficPolicy,
    Version,
    WatchEvent,
)

_AGO = re.compile(r"(\d+)\s*([smhd])(?:\s+ago)?")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def described(resource: Resource | None) -> str:
    match resource:
        case Alias(version=version):
            return f"-> {version}"
        case Version(state=state):
            return state
        case TrafficPolicy():
            return shares(resource)
        case Model(archive_time=when) if when is not None:
            return "archived"
    return ""


def shares(policy: TrafficPolicy) -> str:
    """As `gristmill split` takes it: "1=90 candidate=10 --sticky user"."""
    parts = [f"{split.version or split.alias}={split.weight}" for split in policy.splits]
    if policy.sticky_key:
        parts.append(f"--sticky {policy.sticky_key}")
    if policy.shadow_version:
        parts.append(f"--shadow {policy.shadow_version}")
    return " ".join(parts)


def event_line(event: WatchEvent) -> str:
    parts = [str(event.revision), event.kind, event.name, described(event.resource)]
    if event.actor:
        parts.append(f"by {event.actor}")
    return "  ".join(part for part in parts if part)


def change_row(change: Change) -> tuple[str, ...]:
    return (
        str(change.revision),
        moment(change.commit_time),
        change.kind,
        change.name,
        described(change.after),
        change.actor,
    )


def moment_of(text: str) -> datetime:
    """ "2026-01-31T12:00:00Z", "2026-01-31 12:00" (local time), or "90m": so long ago."""
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago:
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(
            f"{text!r} is no moment such as 2026-01-31T12:00:00Z, 2026-01-31 or 90m (ago)"
        ) from error
