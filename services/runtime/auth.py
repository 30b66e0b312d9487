"""Who a token belongs to, and which scope each method needs. Default deny; knows no transport."""

import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.runtime.call import Identity
from services.runtime.errors import CREDENTIALS_INVALID, PermissionDenied, Unauthenticated

Scope = Literal["infer", "read", "admin", "delegate"]
PUBLIC = "public"
ALL_SCOPES: frozenset[str] = frozenset(get_args(Scope))
ANONYMOUS = Identity("anonymous", ALL_SCOPES)

_REGISTRY = "/gristmill.registry.v1.RegistryService/"
_CLASSIFIER = "/gristmill.classifier.v1.ClassifierService/"
_GENERATOR = "/gristmill.generator.v1.GeneratorService/"
_WORKER = "/gristmill.registry.v1.WorkerService/"
_OPERATIONS = "/google.longrunning.Operations/"
_INFERENCE = "/inference.GRPCInferenceService/"


def _each(prefix: str, names: str, scope: str) -> dict[str, str]:
    return {prefix + name: scope for name in names.split()}


# Every method of every service; one that is missing here is refused when authentication is on.
SCOPES: dict[str, str] = {
    **_each("/grpc.health.v1.Health/", "Check Watch List", PUBLIC),
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": "read",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "read",
    **_each(_CLASSIFIER, "Classify ClassifyStream ClassifyBidi", "infer"),
    **_each(_GENERATOR, "Generate GenerateStream GenerateBidi CountTokens", "infer"),
    **_each(_CLASSIFIER, "LoadModel UnloadModel", "admin"),
    **_each(_GENERATOR, "LoadModel UnloadModel", "admin"),
    **_each(_CLASSIFIER, "ListLoadedModels", "read"),
    **_each(_GENERATOR, "ListLoadedModels", "read"),
    **_each(
        _REGISTRY,
        "GetModel BatchGetModels ListModels GetModelVersion BatchGetModelVersions "
        "ListModelVersions GetAlias ListAliases GetTrafficPolicy ResolveModel DownloadArtifact "
        "Watch GetModelHistory ListSources GetModelVersionProfile GetServerInfo",
        "read",
    ),
    **_each(
        _REGISTRY,
        "CreateModel UpdateModel ArchiveModel DeleteModel CreateModelVersion "
        "FinalizeModelVersion UpdateModelVersion ArchiveModelVersion DeleteModelVersion SetAlias "
        "DeleteAlias SetTrafficPolicy DeleteTrafficPolicy UploadArtifact ImportModel "
        "ConvertModelVersion EvaluateModelVersion ProfileModelVersion",
        "admin",
    ),
    **_each(_WORKER, "LeaseJob RenewJob CompleteJob", "admin"),
    **_each(_OPERATIONS, "GetOperation ListOperations WaitOperation", "read"),
    **_each(_OPERATIONS, "CancelOperation DeleteOperation", "admin"),
    **_each(
        _INFERENCE,
        "ServerLive ServerReady ModelReady ServerMetadata ModelMetadata ModelConfig "
        "ModelStatistics RepositoryIndex",
        "read",
    ),
    **_each(_INFERENCE, "ModelInfer ModelStreamInfer", "infer"),
    **_each(_INFERENCE, "RepositoryModelLoad RepositoryModelUnload", "admin"),
}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")


class TokenEntry(BaseModel):
    """One line of the token file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,127}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: frozenset[Scope]


class TokenFile(BaseModel):
    """The token file: hashes of tokens, whose they are and what they may do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: tuple[TokenEntry, ...] = Field(min_length=1)

    @classmethod
    def read(cls, path: Path) -> "TokenFile":
        """The file at `path`, YAML or JSON; ValueError says what is wrong with it."""
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError, ValidationError) as error:
            raise ValueError(f"token file {path.name}: {error}") from error


def token_hash(token: str) -> str:
    """The form in which a token is stored."""
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a call says of itself: its bearer token, and for whom a delegate speaks."""

    authorization: str = ""
    delegated_identity: str = ""
    delegated_scopes: str = ""


class Authenticator:
    """Turns credentials into an identity and holds it against the method's scope."""

    def __init__(self, tokens: TokenFile | None) -> None:
        self._entries = tokens.tokens if tokens else ()
        self.enabled = tokens is not None

    def authorize(self, method: str, credentials: Credentials) -> Identity:
        """The identity of the call, or Unauthenticated / PermissionDenied."""
        scope = SCOPES.get(method)
        if scope == PUBLIC:
            return ANONYMOUS
        identity = self._delegated(self._identify(credentials.authorization), credentials)
        if scope is None or scope not in identity.scopes:
            raise PermissionDenied(
                f"{identity.name} lacks the scope that {method} needs",
                metadata={"scope": scope or "none grants it"},
            )
        return identity

    def _identify(self, authorization: str) -> Identity:
        if not self.enabled:
            return ANONYMOUS
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer" or not token:
            raise Unauthenticated("send `authorization: Bearer <token>`")
        given = token_hash(token.strip())
        # Each entry is compared, and in constant time, so that timing tells nothing.
        found = [e for e in self._entries if hmac.compare_digest(e.sha256, given)]
        if not found:
            raise Unauthenticated("the token is not known here", reason=CREDENTIALS_INVALID)
        return Identity(found[0].identity, frozenset(found[0].scopes))

    def _delegated(self, sender: Identity, credentials: Credentials) -> Identity:
        """The caller behind a delegate, with no scope that the delegate itself lacks."""
        name = credentials.delegated_identity
        if not name:
            return sender
        if "delegate" not in sender.scopes:
            raise PermissionDenied(
                f"{sender.name} may not speak for others", metadata={"scope": "delegate"}
            )
        if not _NAME.fullmatch(name):
            raise PermissionDenied("the delegated identity is malformed")
        asked = frozenset(credentials.delegated_scopes.split(","))
        return Identity(name, (asked & sender.scopes) - {"delegate"})
