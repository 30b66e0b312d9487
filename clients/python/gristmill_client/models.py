"""The registry as the sync client shows it; the operations themselves are flows."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping
from pathlib import Path

from gristmill_client import _registry_flows as flows
from gristmill_client._models_pointing import Pointing
from gristmill_client._models_working import Working
from gristmill_client._pull import pull
from gristmill_client._push import CHECK_TIMEOUT_S, OnCheck, Told, push, repair
from gristmill_client._streams import Watch
from gristmill_client._tally import OnProgress
from gristmill_client._watch import WatchState
from gristmill_client.resources import Model, Task, Version


class Models(Pointing, Working):
    """Models, versions and aliases. All names are plain: "sentiment", not "models/sentiment"."""

    def list(
        self,
        filter: str = "",  # noqa: A002  # the contract's name
        order_by: str = "",
    ) -> builtins.list[Model]:
        """All models by name, or as `order_by` says ("create_time desc").

        `filter` as in AIP-160: `labels.team = "nlp"`; archived ones only when it names
        `archive_time`. RPC ListModels.
        """
        return self._session.run(flows.list_models(filter, order_by))

    def get(self, name: str) -> Model:
        """One model. Raises NotFound. RPC GetModel."""
        return self._session.run(flows.get_model(name))

    def batch_get(self, names: Iterable[str]) -> builtins.list[Model]:
        """Those models, in that order. Raises NotFound if one is missing. RPC BatchGetModels."""
        return self._session.run(flows.batch_get(names))

    def versions(
        self,
        name: str,
        filter: str = "",  # noqa: A002
        order_by: str = "",
    ) -> builtins.list[Version]:
        """The versions, newest first, or as `order_by` says ("metrics.accuracy desc").

        `filter` such as `state = READY AND metrics.accuracy >= 0.9`. RPC ListModelVersions.
        """
        return self._session.run(flows.list_versions(name, filter, order_by))

    def version(self, name: str, version: int) -> Version:
        """One version. Raises NotFound. RPC GetModelVersion."""
        return self._session.run(flows.get_version(name, version))

    def batch_get_versions(self, refs: Iterable[tuple[str, int]]) -> builtins.list[Version]:
        """Those versions, (model, version) each, in that order; of several models if need be.

        Raises NotFound if one is missing. RPC BatchGetModelVersions.
        """
        return self._session.run(flows.batch_get_versions(refs))

    def update(
        self,
        name: str,
        version: int | None = None,
        *,
        description: str | None = None,
        labels: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> Model | Version:
        """Replaces what is given of a version, or of the model; `metrics` only a version has.

        Raises NotFound, InvalidRequest. RPCs UpdateModelVersion, UpdateModel.
        """
        return self._session.run(flows.update(name, version, description, labels, metrics))

    def archive(self, name: str, version: int | None = None) -> Model | Version:
        """Puts a version, or the model, away: it keeps everything and is served no more.

        Raises NotFound, and FailedPrecondition where an alias or a traffic policy points to the
        version. RPCs ArchiveModelVersion, ArchiveModel.
        """
        return self._session.run(flows.archive(name, version, restore=False))

    def restore(self, name: str, version: int | None = None) -> Model | Version:
        """Takes an archived version, or model, back. RPCs ArchiveModelVersion, ArchiveModel."""
        return self._session.run(flows.archive(name, version, restore=True))

    def delete(self, name: str, version: int | None = None, *, force: bool = False) -> None:
        """Deletes one version, or the model: with `force` although it has versions.

        Raises NotFound, and FailedPrecondition where an alias or a traffic policy points to the
        version. RPCs DeleteModelVersion, DeleteModel.
        """
        self._session.run(flows.delete(name, version, force))

    def push(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        task: Task | None = None,
        alias: str | None = None,
        timeout: float = CHECK_TIMEOUT_S,
        on_progress: OnProgress | None = None,
        on_check: OnCheck | None = None,
    ) -> Version:
        """Makes a READY version from a model folder.

        Every file of the folder but hidden ones goes along. The model is created if it is absent,
        under `name` or the manifest's own. A folder without a model.yaml is named after itself, its
        `task` is told by its files (GGUF: generation; data.jsonl alone: dataset; else
        classification), and the registry infers the rest. Bytes that the registry has are not sent
        again, an upload that is cut goes on from the last durable byte, and a folder whose content
        is the newest READY version gives that version. `alias` is then pointed to the version.
        `on_progress` hears a Progress, in bytes, for what must be sent; the registry's check may
        take `timeout` seconds, of which `on_check` hears the OperationState.

        Raises InvalidRequest (manifest, file names), FailedPrecondition (the version was rejected,
        with the reasons; or the model is of another task), DeadlineExceeded (the check goes on),
        Unavailable or Conflict (another upload of the same bytes) after several tries in vain.
        RPCs GetModel, CreateModel, ListModelVersions, CreateModelVersion, UploadArtifact,
        FinalizeModelVersion, google.longrunning.Operations/WaitOperation, SetAlias.
        """
        told = Told(on_progress, on_check, timeout)
        return self._session.run(push(path, name, task, alias, told))

    def repair(
        self,
        path: str | Path,
        name: str,
        version: int,
        *,
        timeout: float = CHECK_TIMEOUT_S,
        on_progress: OnProgress | None = None,
        on_check: OnCheck | None = None,
    ) -> Version:
        """Makes a QUARANTINED or UPLOADING version READY from the folder that it was made of.

        Sends the bytes that the registry lost and has the version checked again; the other
        arguments are those of push. Raises NotFound, InvalidRequest (the folder lacks the very
        content), FailedPrecondition (it was rejected), and what a push raises on its way. RPCs
        GetModelVersion, UploadArtifact, FinalizeModelVersion,
        google.longrunning.Operations/WaitOperation.
        """
        told = Told(on_progress, on_check, timeout)
        return self._session.run(repair(path, name, version, told))

    def pull(
        self,
        name: str,
        to: str | Path,
        *,
        version: int | None = None,
        alias: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Version:
        """Puts the files of a version into the folder `to`, made if absent.

        Each file appears at once and only with the right SHA-256, model.yaml last; files that are
        there already are not fetched again; a cut goes on where it was, also in a later pull.
        Other files in the folder are left alone. Neither version nor alias: what a call without
        them would get. `on_progress` hears a Progress, in bytes, for the whole version.

        Raises NotFound, DataLoss (the bytes do not match their digest; nothing is left of that
        file), Unavailable after several tries in vain, OSError.
        RPCs ResolveModel, DownloadArtifact.
        """
        return self._session.run(pull(name, to, version, alias, on_progress))

    def watch(
        self,
        after_revision: int | None = None,
        *,
        names: Iterable[str] = (),
        task: Task | None = None,
    ) -> Watch:
        """Every change from a revision on, each once and in order, for as long as you iterate.

        Without `after_revision` a snapshot comes first, given as a whole once it is complete, and a
        bookmark with `snapshot_complete` ends it. `names` and `task` narrow what is told. A cut
        (UNAVAILABLE, SLOW_CONSUMER) is resumed from the last revision without a gap or a
        duplicate; only the first connection, five minutes without any, or another error raises:
        OutOfRange (REVISION_COMPACTED) means to begin again with a snapshot. Close it, or leave its
        `with`, to end it. RPC Watch.
        """
        return Watch(self._session, WatchState(after_revision, names, task))
