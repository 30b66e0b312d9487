"""How an operator describes the places that models may be imported from. Knows none of them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

SourceId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FolderSettings(_Settings):
    """A folder that this process can read."""

    kind: Literal["folder"]
    path: Path
    """Models are the folders below it; nothing in it may be a symbolic link."""


class ObjectStoreSettings(_Settings):
    """A prefix of an object store."""

    kind: Literal["object_store"]
    url: str
    """s3://bucket/prefix, gs:// or az://; models are the prefixes below it."""
    options: dict[str, str] = Field(default={}, repr=False)
    """Such as endpoint and region; the rest is taken from the environment."""


class HuggingFaceSettings(_Settings):
    """The Hugging Face hub, or a mirror that speaks its API."""

    kind: Literal["huggingface"]
    endpoint: str = "https://huggingface.co"
    """Where it is."""
    token_file: Path | None = None
    """File with the token to show; read anew for each import."""

    @field_validator("endpoint")
    @classmethod
    def _check(cls, value: str) -> str:
        if not value.startswith(("https://", "http://")):
            raise ValueError("an endpoint begins with https:// or http://")
        return value.rstrip("/")


SourceSettings = Annotated[
    FolderSettings | ObjectStoreSettings | HuggingFaceSettings, Field(discriminator="kind")
]
