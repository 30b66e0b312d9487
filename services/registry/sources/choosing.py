"""Which of a source's files make up a model, and whether they may. Knows no source.

Left out is what no backend here reads: documents, pictures, code (which is never run here), weights
of other frameworks, and pickles beside weights that are none.
"""

import re
from collections.abc import Sequence

from services.registry.sources.source import Listing, SourceFile, is_plain, missing
from services.runtime.errors import FailedPrecondition, shortened

MOST_FILES = 4096
MOST_BYTES = 200 * 2**30
MOST_FACT_BYTES = 500
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".bmp", ".ico")
CODE = (".py", ".pyc", ".pyi", ".ipynb", ".sh")
ELSEWHERE = (".h5", ".msgpack", ".ot", ".tflite")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
TENSORS = (".safetensors", ".onnx", ".gguf")
_OTHERS = re.compile(r"(flax|tf|tensorflow|onnx|coreml|openvino)([-_].*)?")


def chosen(listing: Listing, most_bytes: int = MOST_BYTES) -> Listing:
    """The listing with the files of the model only; FailedPrecondition where it cannot be one."""
    files = _without_pickles(_without_others([f for f in listing.files if _wanted(f.path)]))
    if not files:
        raise missing("there is no file of a model below this path")
    if len(files) > MOST_FILES:
        raise FailedPrecondition(f"a version has at most {MOST_FILES:,} files, not {len(files):,}")
    for file in files:
        if not is_plain(file.path):
            said = f"the file name {file.path!a} is not one that an artifact may have"
            raise FailedPrecondition(said)
    check_size(sum(file.size_bytes or 0 for file in files), most_bytes)
    kept = {file.path for file in files}
    left = sorted(file.path for file in listing.files if file.path not in kept)
    facts = dict(listing.facts)
    if left:
        facts["left_out"] = shortened(ascii(", ".join(left))[1:-1], MOST_FACT_BYTES)
    return listing.model_copy(update={"files": tuple(files), "facts": facts})


def check_size(size_bytes: int, most_bytes: int) -> None:
    """Refuse a model that is larger than the operator takes."""
    if size_bytes > most_bytes:
        raise FailedPrecondition(
            f"this model is larger than the {most_bytes:,} bytes that this registry imports at most"
        )


def _wanted(path: str) -> bool:
    parts = path.split("/")
    name = parts[-1].lower()
    if any(part.startswith(".") for part in parts):
        return False
    if name.startswith(("license", "licence")):
        return True
    return not (name.startswith("readme") or name.endswith((".md", *PICTURES, *CODE, *ELSEWHERE)))


def _without_others(files: Sequence[SourceFile]) -> list[SourceFile]:
    """The same model for other frameworks lies in folders beside its safetensors."""
    if not any("/" not in f.path and f.path.endswith(".safetensors") for f in files):
        return list(files)
    return [f for f in files if "/" not in f.path or not _OTHERS.fullmatch(f.path.split("/")[0])]


def _without_pickles(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Where there are no other weights the pickles stay: the check says why it refuses them."""
    if not any(file.path.endswith(TENSORS) for file in files):
        return list(files)
    return [file for file in files if not file.path.endswith(PICKLES)]
