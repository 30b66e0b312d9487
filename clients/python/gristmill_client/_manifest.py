"""Reads model.yaml (schema gristmill.dev/model/v1) as far as a push needs it; knows no wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import yaml

from gristmill_client._inferring import infer_name, infer_task
from gristmill_client.errors import InvalidRequest
from gristmill_client.resources import Lineage, Task

MANIFEST = "model.yaml"
SCHEMA = "gristmill.dev/model/v1"
_LINEAGE = ("source", "revision", "parent_version", "conversion")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model folder says about itself."""

    name: str
    task: Task
    description: str
    metrics: Mapping[str, float]
    lineage: Lineage
    inferred: bool = False
    """The folder says nothing: the registry reads the rest off its files."""


def read_manifest(folder: Path, name: str | None = None, task: Task | None = None) -> Manifest:
    """What the folder says, or without a model.yaml what its files tell.

    Raises InvalidRequest, naming the key, where the manifest makes no sense.
    """
    path = folder / MANIFEST
    if not path.exists():
        return infer(folder, name, task)
    manifest = _read(path, name)
    if task is not None and task != manifest.task:
        raise InvalidRequest(f"{path} says `task: {manifest.task}`, not {task}")
    return manifest


def _read(path: Path, name: str | None) -> Manifest:
    content = _parse(path)
    if content.get("schema") != SCHEMA:
        raise InvalidRequest(f"{path}: `schema` must be {SCHEMA}, not {content.get('schema')!r}")
    task = content.get("task")
    if task not in get_args(Task):
        raise InvalidRequest(f"{path}: `task` must be {' or '.join(get_args(Task))}, not {task!r}")
    chosen = name or content.get("name")
    if not isinstance(chosen, str) or not chosen:
        raise InvalidRequest(f"{path}: `name` is missing, and none was given")
    _check_files(path, content.get("files"))
    return Manifest(
        name=chosen,
        task=cast(Task, task),
        description=str(content.get("description") or "").strip(),
        metrics=_metrics(path, content),
        lineage=_lineage(_mapping(path, content, "lineage")),
    )


def infer(folder: Path, name: str | None, task: Task | None) -> Manifest:
    """The name of the folder, and the task that its files tell of."""
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is not a folder")
    return Manifest(
        name=name or infer_name(folder),
        task=task or infer_task(folder),
        description="",
        metrics={},
        lineage=Lineage(),
        inferred=True,
    )


def _parse(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InvalidRequest(f"{path} must be a mapping of keys to values")
    return content


def _mapping(path: Path, content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path}: `{key}` must be a mapping")
    return value


def _metrics(path: Path, content: Mapping[str, Any]) -> dict[str, float]:
    metrics = {}
    for key, value in _mapping(path, content, "metrics").items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidRequest(f"{path}: the metric `{key}` must be a number, not {value!r}")
        metrics[str(key)] = float(value)
    return metrics


def _lineage(content: Mapping[str, Any]) -> Lineage:
    """What the contract has a field for; every other fact is kept as text."""
    known: dict[str, Any] = {key: content[key] for key in _LINEAGE if content.get(key) is not None}
    facts = content.get("facts") or {}
    rest = {key: value for key, value in content.items() if key not in (*_LINEAGE, "facts")}
    return Lineage(**known, facts={str(k): str(v) for k, v in {**rest, **facts}.items()})


def _check_files(path: Path, files: object) -> None:
    """Every file that the manifest counts on must be in the folder."""
    names = files.values() if isinstance(files, dict) else files
    for name in names if isinstance(names, Iterable) else ():
        if isinstance(name, str) and not (path.parent / name).is_file():
            raise InvalidRequest(f"{path}: `files` names {name}, which is not in the folder")
