"""The registry as the sync client shows it; the operations themselves are flows."""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from pathlib import Path

from gristmill_client import _registry_flows as flows
from gristmill_client._pull import pull
from gristmill_client._push import push
from gristmill_client._session import Session
from gristmill_client._streams import Watch
from gristmill_client._tally import OnProgress
from gristmill_client._watch import WatchState
from gristmill_client.resources import Alias, Model, Resolution, Task, Version


class Models:
    """Models, versions and aliases. All names are plain: "sentiment", not "models/sentiment"."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def list(self, filter: str = "") -> builtins.list[Model]:  # noqa: A002  # the contract's name
        """All models by name; `filter` as in AIP-160: `labels.team = "nlp"`. RPC ListModels."""
        return self._session.run(flows.list_models(filter))

    def get(self, name: str) -> Model:
        """One model. Raises NotFound. RPC GetModel."""
        return self._session.run(flows.get_model(name))

    def versions(self, name: str, filter: str = "") -> builtins.list[Version]:  # noqa: A002
        """The versions, newest first; `filter` such as `state = READY`. RPC ListModelVersions."""
        return self._session.run(flows.list_versions(name, filter))

    def version(self, name: str, version: int) -> Version:
        """One version. Raises NotFound. RPC GetModelVersion."""
        return self._session.run(flows.get_version(name, version))

    def aliases(self, name: str) -> builtins.list[Alias]:
        """The aliases of a model, by name. RPC ListAliases."""
        return self._session.run(flows.list_aliases(name))

    def resolve(
        self, name: str, *, version: int | None = None, alias: str | None = None
    ) -> Resolution:
        """The version that a reference means now; neither version nor alias: what a call without
        them would get. Raises NotFound. RPC ResolveModel.
        """
        return self._session.run(flows.resolve(name, version, alias))

    def promote(self, name: str, version: int, alias: str = "live") -> Alias:
        """Points the alias to the version, creating it if need be; its gates stay as they are.

        Raises FailedPrecondition where the version is not READY or a gate does not hold: then
        `preconditions` names each with its figure. RPC SetAlias.
        """
        return self._session.run(flows.promote(name, version, alias))

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
        alias: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Version:
        """Makes a READY version from a folder that holds a model.yaml.

        Every file of the folder but hidden ones goes along. The model is created if it is absent,
        under `name` or the manifest's own. Bytes that the registry has are not sent again, a
        connection that is cut is opened again and the upload goes on from the last durable byte,
        and a folder whose content is the newest READY version gives that version. `alias` is then
        pointed to the version. `on_progress` hears a Progress, in bytes, for what must be sent.

        Raises InvalidRequest (manifest, file names), FailedPrecondition (the version was rejected,
        with the reasons; or the model is of another task), Unavailable after several tries in vain.
        RPCs GetModel, CreateModel, ListModelVersions, CreateModelVersion, UploadArtifact,
        FinalizeModelVersion, google.longrunning.Operations/GetOperation, SetAlias.
        """
        return self._session.run(push(path, name, alias, on_progress))

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
