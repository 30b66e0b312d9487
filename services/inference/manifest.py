"""The manifest of a model folder, `model.yaml`: what the files are and how they are batched."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from services.runtime.errors import InvalidRequest

FILE_NAME = "model.yaml"
SCHEMA = "gristmill.dev/model/v1"
PlainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,255}$")]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Input(_Section):
    """What callers send."""

    kind: Literal["text", "text_pair", "float_features"]
    max_tokens: int = Field(default=512, ge=1, le=1_048_576)
    """Longest input of a text model; longer ones are cut."""
    names: tuple[str, ...] = ()
    """The features of a float_features model, in order."""


class Output(_Section):
    """What a classifier answers."""

    labels: tuple[str, ...] = ()
    """By index; empty where the model names none."""
    multi_label: bool = False
    batch_tolerance: float = Field(default=0.0, ge=0, le=1)
    """Largest difference that an item's neighbours in a batch were seen to make to a probability,
    beyond rounding; 0: none. Above 0 for weights in int8 whose activations are quantised as they
    come, by the range of the whole batch."""


class Batching(_Section):
    """How items become batches."""

    max_batch_size: int = Field(default=32, ge=1, le=4096)
    max_batch_tokens: int = Field(default=0, ge=0)
    """Largest padded cost of a batch, longest x count; 0: only the size counts."""
    max_queue_delay_ms: float = Field(default=0.0, ge=0, le=10_000)
    """How long an idle instance waits for a fuller batch; 0: never."""
    max_overtakes: int = Field(default=4, ge=0)
    """How many batches may go ahead of an item with items from behind it."""
    instances: int = Field(default=1, ge=1, le=64)
    """How many batches run at once."""
    max_queue_items: int = Field(default=4096, ge=1)
    """Items waiting or running; more are refused."""
    max_queue_bytes: int = Field(default=256 * 2**20, ge=1)
    """Bytes of input waiting or running; more are refused."""


class ContextLimits(_Section):
    """What a language model can take."""

    max_context_tokens: int = Field(default=2048, ge=1)


class Manifest(_Section):
    """`model.yaml`, version 1."""

    schema_: Literal["gristmill.dev/model/v1"] = Field(alias="schema")
    name: ModelName
    task: Literal["classification", "generation"]
    description: str = Field(default="", max_length=4096)
    license: str = ""
    backend: Literal["onnxruntime", "pytorch"] | None = None
    engine: Literal["openvino-genai", "vllm"] | None = None
    files: dict[str, PlainName] = Field(min_length=1)
    """Role (model, tokenizer) to file name within the folder."""
    input: Input | None = None
    output: Output = Output()
    batching: Batching = Batching()
    limits: ContextLimits = ContextLimits()
    metrics: dict[str, float] = {}
    lineage: dict[str, str] = {}
    notes: str = ""

    @classmethod
    def parse(cls, text: str) -> "Manifest":
        """The manifest in `text`, or InvalidRequest that says what is wrong with it."""
        try:
            return cls.model_validate(yaml.safe_load(text))
        except (yaml.YAMLError, ValidationError) as error:
            raise InvalidRequest.field(FILE_NAME, str(error)) from error
        except (ValueError, AttributeError, RecursionError) as error:
            # What PyYAML lets through: a date that is none, nesting without end.
            raise InvalidRequest.field(FILE_NAME, f"is no YAML: {error}") from error

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a model folder."""
        try:
            text = (folder / FILE_NAME).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest.field(FILE_NAME, str(error)) from error
        return cls.parse(text)
