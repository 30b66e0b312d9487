"""The models of this process as a repository: listed, loaded and unloaded by name."""

from collections.abc import Iterator, Mapping

from services.classifier.classifier import Classifier
from services.inference.loaded import Wanted
from services.inference.serving import Serving
from services.oip.contract import pb
from services.runtime.errors import InvalidRequest, UnsupportedField

STATES = {
    "loading": "LOADING",
    "ready": "READY",
    "draining": "UNLOADING",
    "failed": "UNAVAILABLE",
    "unloaded": "UNAVAILABLE",
}
UNLOADED = "unloaded"
"""The reason that Triton gives, where there is no other."""
DEPENDENTS = "unload_dependents"
Given = Mapping[str, pb.ModelRepositoryParameter]


class Repository:
    """The registry's models as far as this process has them; there is no other repository."""

    def __init__(self, serving: Serving[Classifier]) -> None:
        self._serving = serving

    def index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        """Every version here, or those that are ready."""
        _refuse_another(request.repository_name)
        return pb.RepositoryIndexResponse(models=self._entries(ready_only=request.ready))

    def _entries(self, *, ready_only: bool) -> Iterator[pb.RepositoryIndexResponse.ModelIndex]:
        for one in self._serving.models():
            if ready_only and one.state != "ready":
                continue
            yield pb.RepositoryIndexResponse.ModelIndex(
                name=one.entry.model,
                version=str(one.entry.version),
                state=STATES[one.state],
                reason=one.reason or (UNLOADED if one.state == "unloaded" else ""),
            )

    async def load(self, request: pb.RepositoryModelLoadRequest) -> None:
        """Load what `live` means; what is ready stays as it is."""
        _refuse_another(request.repository_name)
        _require_name(request.model_name)
        for name in request.parameters:
            said = "is not taken: a model's settings and files are those of its registered version"
            raise UnsupportedField.field(f"parameters[{name}]", said)
        await self._serving.load(Wanted(request.model_name))

    async def unload(self, request: pb.RepositoryModelUnloadRequest) -> None:
        """Unload every version, when its calls have ended, until the next load or start."""
        _refuse_another(request.repository_name)
        _require_name(request.model_name)
        _refuse_unknown(request.parameters)
        await self._serving.unload(Wanted(request.model_name))


def _refuse_another(repository: str) -> None:
    if repository:
        raise UnsupportedField.field("repository_name", "there is one repository, without a name")


def _require_name(model: str) -> None:
    if not model:
        raise InvalidRequest.field("model_name", "is required")


def _refuse_unknown(given: Given) -> None:
    for name, value in given.items():
        if name != DEPENDENTS:
            raise UnsupportedField.field(f"parameters[{name}]", "is not known")
        # No model here needs another: with or without, nothing else is unloaded.
        if value.WhichOneof("parameter_choice") != "bool_param":
            raise InvalidRequest.field(f"parameters[{name}]", "must be a bool_param")
