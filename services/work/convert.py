"""Makes a model folder of another kind out of one, and measures it against its source.

Knows no version and no store: a folder in, a folder out, figures back.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from services.inference import loading, preprocessing
from services.inference.backend import Instance, TensorSpec
from services.inference.backends.onnx import OnnxBackend
from services.inference.items import pad
from services.inference.manifest import FILE_NAME, Manifest
from services.runtime.errors import FailedPrecondition, InvalidRequest
from services.work import compare, quantize, samples
from services.work.pace import Paced, Progress
from services.work.warm import longest, need

Kind = Literal["onnx", "onnx-int8-dynamic"]
MODEL = "model.onnx"
# What neighbours move an answer by less than this is rounding, as in any batch.
ROUNDING = 1e-5


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was made: the names of the files, and what was measured and used."""

    files: list[str]
    metrics: dict[str, float]
    """difference_max and difference_mean of probabilities, logits_difference_max, top1_agreement,
    source_items_per_s, result_items_per_s, speedup; for int8 neighbour_difference_max too."""
    facts: dict[str, str]


class _Source:
    """The model to convert, in memory, and real inputs to measure with."""

    def __init__(
        self, folder: Path, manifest: Manifest, instance: Instance, inputs: Sequence[TensorSpec]
    ) -> None:
        preprocessor = preprocessing.build(manifest, folder, inputs)
        self.instance = instance
        self.fill = preprocessor.fill
        self.items = samples.encoded(preprocessor, samples.items(folder, manifest, inputs))
        self._multi_label = manifest.output.multi_label

    @cached_property
    def _answers(self) -> compare.Answers:
        return self._answers_of(self.instance)

    def _answers_of(self, instance: Instance) -> compare.Answers:
        return compare.answers(instance, self.items, self.fill, multi_label=self._multi_label)

    def agreement(self, result: Instance) -> dict[str, float]:
        """How far the result's answers are from those of the source."""
        return compare.agreement(self._answers, self._answers_of(result))

    def speeds(self, result: Instance) -> dict[str, float]:
        """Items a second of both."""
        return compare.speeds(self.instance, result, self.items, self.fill)

    def neighbours(self, result: Instance) -> float:
        """How far neighbours in a batch move the result's answers."""
        return compare.neighbour_difference(
            result, self.items, self.fill, multi_label=self._multi_label
        )


def convert(
    folder: Path, out: Path, kind: Kind, max_difference: float, progress: Progress
) -> Conversion:
    """Convert `folder` into the empty folder `out`, whose model.yaml is written last.

    `onnx` takes a Hugging Face classifier with safetensors, `onnx-int8-dynamic` an ONNX model.
    Raises FailedPrecondition where the source is of another kind, or where on the samples a
    probability of the result differs from the source's by more than `max_difference`.
    """
    manifest, paced = Manifest.read(folder), Paced(progress)
    paced(0.0, "loading the source")
    if kind == "onnx":
        metrics, facts = _export(folder, manifest, out, max_difference, paced)
    elif kind == "onnx-int8-dynamic":
        metrics, facts = _quantize(folder, manifest, out, max_difference, paced)
    else:
        raise InvalidRequest.field("conversion", f"{kind!r} is not known")
    own = (folder / samples.FILE_NAME).is_file()
    facts |= {"conversion": kind, "samples": samples.FILE_NAME if own else "built in"}
    files = {"model": MODEL}
    if tokenizer := manifest.files.get("tokenizer"):
        files["tokenizer"] = tokenizer
    for name in [tokenizer, samples.FILE_NAME if own else None]:
        if name:
            shutil.copyfile(folder / name, out / name)
    _describe(folder, out, files, metrics, facts)
    # What cannot be served must not become a version.
    loading.load(Manifest.read(out), out)
    return Conversion(sorted(file.name for file in out.iterdir()), metrics, facts)


def _export(
    folder: Path, manifest: Manifest, out: Path, max_difference: float, paced: Paced
) -> tuple[dict[str, float], dict[str, str]]:
    if manifest.backend != "pytorch" or not (folder / "config.json").is_file():
        raise FailedPrecondition("ONNX is made of a Hugging Face folder with the backend pytorch")
    need("torch", "transformers", "safetensors", "onnx", "onnxscript")
    from services.work.transformer import VERSIONS, Transformer

    model = Transformer(folder)
    source = _Source(folder, manifest, model, model.inputs)
    model.choose_threads(pad(source.items[-compare.GROUP :], source.fill))
    paced(0.1, "exporting")
    longest(model, pad(source.items[:1], source.fill), manifest)
    most = manifest.input.max_tokens if manifest.input else 1
    model.export(out / MODEL, pad(source.items[:2], source.fill), most)
    paced(0.4, "measuring agreement")
    result = OnnxBackend(out / MODEL)
    metrics = source.agreement(result.instance())
    _hold(metrics, max_difference)
    paced(0.7, "measuring speed")
    return metrics | source.speeds(result.instance()), {
        "source": "pytorch",
        "source_threads": str(model.threads),
        **VERSIONS,
    }


def _quantize(
    folder: Path, manifest: Manifest, out: Path, max_difference: float, paced: Paced
) -> tuple[dict[str, float], dict[str, str]]:
    """Scales by tensor and by channel, whichever stays nearer to the source."""
    if manifest.backend != "onnxruntime":
        raise FailedPrecondition("int8 is made of a model with the backend onnxruntime")
    need("onnx")
    path = folder / manifest.files["model"]
    backend = OnnxBackend(path)
    source = _Source(folder, manifest, backend.instance(), backend.inputs)
    tried: dict[str, tuple[dict[str, float], Instance]] = {}
    for done, scales in ((0.1, "tensor"), (0.4, "channel")):
        paced(done, f"quantising by {scales}")
        place = out / scales
        place.mkdir()
        quantize.quantize(path, place / MODEL, per_channel=scales == "channel")
        result = OnnxBackend(place / MODEL).instance()
        tried[scales] = source.agreement(result), result
    best = min(tried, key=lambda scales: tried[scales][0]["difference_max"])
    metrics, result = tried[best]
    _hold(metrics, max_difference)
    paced(0.7, "measuring neighbours and speed")
    metrics["neighbour_difference_max"] = source.neighbours(result)
    metrics |= source.speeds(result)
    for file in (out / best).iterdir():
        file.rename(out / file.name)
    for scales in tried:
        shutil.rmtree(out / scales)
    return metrics, {
        "source": "onnxruntime",
        "scales": best,
        "onnxruntime": backend.version,
    }


def _hold(metrics: Mapping[str, float], max_difference: float) -> None:
    found = metrics["difference_max"]
    if not found <= max_difference:
        raise FailedPrecondition(
            f"a probability differs by {found:.3g} from the source's, "
            f"more than the tolerance of {max_difference:.3g}"
        )


def _describe(
    folder: Path,
    out: Path,
    files: Mapping[str, str],
    metrics: Mapping[str, float],
    facts: Mapping[str, str],
) -> None:
    """Write the model.yaml of the result: the source's, as far as it still holds."""
    said: dict[str, Any] = yaml.safe_load((folder / FILE_NAME).read_text(encoding="utf-8"))
    said |= {"backend": "onnxruntime", "files": dict(files)}
    said["metrics"] = {name: float(f"{value:.6g}") for name, value in metrics.items()}
    said["lineage"] = {**said.get("lineage", {}), **facts}
    notes = (
        f"Converted ({facts['conversion']}): on samples, a probability differs by at most "
        f"{metrics['difference_max']:.2g} from the source's."
    )
    moved = _rounded_up(metrics.get("neighbour_difference_max", 0.0))
    if moved > ROUNDING:
        said["output"] = {**(said.get("output") or {}), "batch_tolerance": moved}
        notes += f" Neighbours in a batch were seen to move a probability by up to {moved:g}."
    said["notes"] = f"{said.get('notes', '')} {notes}".strip()
    text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=100)
    (out / FILE_NAME).write_text(text, encoding="utf-8")


def _rounded_up(value: float) -> float:
    """Two digits, never below what was measured."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return min(1.0, float(f"{math.ceil(value / unit) * unit:.3g}"))
