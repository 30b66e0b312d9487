"""The manifest of a model folder, `model.yaml`: what the files are and how they are batched."""

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from services.runtime.errors import InvalidRequest

FILE_NAME = "model.yaml"
SCHEMA = "gristmill.dev/model/v1"
PlainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,255}$")]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Image(_Section):
    """How an encoded image becomes the model's one input: decoded, resized, scaled, normalised.

    It is turned as its EXIF says. What is transparent is as it looks over black; of 16 bits the
    high 8 count. A model whose input is UINT8 gets the channels as they are, 0 to 255.
    """

    width: int = Field(ge=1, le=8192)
    height: int = Field(ge=1, le=8192)
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    """stretch: to the size as it is; crop: cover the size and cut the middle out; pad: fit into
    the middle of the size, the rest is black."""
    crop_share: float = Field(default=1.0, gt=0, le=1)
    """crop: how much of the sides is kept of what covers the size. 224 cut out of images whose
    shorter side was made 256 is 0.875."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    """All but nearest look at every pixel, however small the result is."""
    channels: Literal["rgb", "bgr", "grayscale"] = "rgb"
    """grayscale: 0.299 red + 0.587 green + 0.114 blue, made before resizing."""
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    scale: float = Field(default=1 / 255, gt=0, allow_inf_nan=False)
    """What each channel, 0 to 255, is multiplied with first."""
    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = ()
    """Of each channel, in the order of `channels`, subtracted after scaling; empty: 0."""
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()
    """Of each channel, divided by after that; empty: 1."""

    @property
    def depth(self) -> int:
        """How many channels there are."""
        return 1 if self.channels == "grayscale" else 3

    @model_validator(mode="after")
    def _numbers_fit_channels(self) -> Self:
        for name, given in (("mean", self.mean), ("std", self.std)):
            if given and len(given) != self.depth:
                said = f"{name} needs {self.depth} numbers for {self.channels}, has {len(given)}"
                raise ValueError(said)
        if self.crop_share < 1 and self.resize != "crop":
            raise ValueError(f"crop_share is not for resize {self.resize}")
        return self


class Input(_Section):
    """What callers send. Tensors by the names of the model's own inputs are always taken too."""

    kind: Literal["text", "text_pair", "float_features", "image", "tensors"]
    max_tokens: int = Field(default=512, ge=1, le=1_048_576)
    """Longest input of a text model; longer ones are cut."""
    names: tuple[str, ...] = ()
    """The features of a float_features model, in order."""
    image: Image | None = None
    """Required of an image model."""

    @property
    def has_tokens(self) -> bool:
        """Whether items are as long as their text."""
        return self.kind in ("text", "text_pair")

    @model_validator(mode="after")
    def _image_goes_with_its_kind(self) -> Self:
        if self.kind == "image" and self.image is None:
            raise ValueError("image is required where kind is image: width and height at least")
        if self.kind != "image" and self.image is not None:
            raise ValueError(f"image is not for kind {self.kind}")
        return self


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
    preferred_batch_sizes: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = ()
    """Sizes that the device runs best: a batch is cut to the largest that it fills, if any."""
    max_queue_delay_ms: float = Field(default=0.0, ge=0, le=10_000)
    """How long an idle instance waits for a fuller batch; 0: never."""
    max_overtakes: int = Field(default=8, ge=0)
    """How many batches may go ahead of an item with items from behind it."""
    instances: int = Field(default=0, ge=0, le=64)
    """How many batches run at once; 0: as many as suit the device."""
    max_queue_items: int = Field(default=4096, ge=1)
    """Items waiting or running; more are refused."""
    max_queue_bytes: int = Field(default=256 * 2**20, ge=1)
    """Bytes of input waiting or running; more are refused."""


class OnnxOptions(_Section):
    """ONNX Runtime's own settings, under its names."""

    providers: tuple[str, ...] = ()
    """Execution providers, best first; empty: as the service is configured."""
    provider_options: dict[str, dict[str, str]] = {}
    """By provider."""
    graph_optimization_level: Literal["disable", "basic", "extended", "all"] = "all"
    execution_mode: Literal["sequential", "parallel"] = "sequential"
    intra_op_num_threads: int = Field(default=0, ge=0, le=256)
    """Of each instance; 0: the instances share the cores."""
    session_config: dict[str, str] = {}
    """Entries such as session.set_denormal_as_zero."""


class Tensor(_Section):
    """A tensor of a model whose file does not tell what it takes."""

    name: str = Field(min_length=1, max_length=256)
    datatype: Literal["BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"]
    shape: tuple[Annotated[int, Field(ge=-1)], ...] = Field(min_length=1)
    """-1 is any; the first dimension, which is the batch, must be."""


class TorchOptions(_Section):
    """How PyTorch runs a model: a Hugging Face folder with safetensors (files.model and
    files.config), TorchScript (.pt) or an archive of torch.export (.pt2)."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights of a folder and the arithmetic; answers are in float32 all the same. The short
    ones are for a GPU, and bfloat16 for a CPU that has instructions for it."""
    threads: int = Field(default=0, ge=0, le=256)
    """CPU threads of each instance; 0: the instances share the cores."""
    cuda_graphs: bool = True
    """On a GPU: capture the model once for each of `length_buckets` and some batch sizes."""
    max_cuda_graphs: int = Field(default=64, ge=1, le=4096)
    """How many of them an instance keeps; of more, the one unused for longest gives way."""
    length_buckets: tuple[Annotated[int, Field(ge=1)], ...] = (16, 32, 64, 128, 256, 512)
    """Lengths that batches are padded to on a GPU, so that captured graphs fit."""
    unpadded: bool | None = None
    """Whether padding is left out of the computation. By default, and that is faster: where the
    model is known to allow it and gives the same answers so; on a GPU that needs bfloat16 or
    float16. true: refuse to load where it cannot be; false: never."""
    inputs: tuple[Tensor, ...] = ()
    """Of a TorchScript archive, in the order of its `forward`. Left out, they have the names that
    stand there, and token ids, one vector or one image are as `input` says; needed for anything
    else. Of torch.export only the names are taken."""
    outputs: tuple[Annotated[str, StringConstraints(min_length=1, max_length=256)], ...] = ()
    """Names of what an archive gives, in order. Left out, they have its own if it has any, and a
    single one is `logits`: name `probabilities` what is so already."""
    bounds: dict[str, Annotated[int, Field(ge=0)]] = {}
    """By integer input of an archive: the first value that its tables lack, such as the size of the
    vocabulary; 0: any may come. Needed on a GPU, where such a value would end every model's work;
    a folder tells its own."""


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
    """Role (model, tokenizer, golden) to file name within the folder. `golden` holds labelled
    examples as JSON lines: a version that does not answer them as they say is not served."""
    input: Input | None = None
    output: Output = Output()
    batching: Batching = Batching()
    onnxruntime: OnnxOptions = OnnxOptions()
    pytorch: TorchOptions = TorchOptions()
    cache: bool = True
    """Whether equal inputs may be answered from the response cache."""
    memory_bytes: int = Field(default=0, ge=0)
    """What a loaded version takes of the service's memory budget; 0: the size of its files."""
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
