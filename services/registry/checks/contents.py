"""What a file is by its first bytes and its ending: pickles, archives, code. Parses no model."""

from enum import StrEnum

from services.registry.checks import zips
from services.registry.checks.files import Files
from services.registry.checks.findings import RefusedError
from services.registry.checks.pickles import HEAD_BYTES, holds_objects, is_pickle

PICKLE_RULE, CODE_RULE = "pickle-refused", "remote-code"
# Formats whose loaders execute what they read.
PICKLED = (
    *(".pkl", ".pickle", ".pt", ".pth", ".pt2", ".bin", ".joblib", ".dill", ".ckpt", ".npz"),
)
ARCHIVES = (
    *(".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".7z", ".rar", ".whl", ".jar"),
    *(".keras", ".nemo", ".egg", ".mar"),
)
CODE = (".py", ".pyc", ".pyo", ".pyd", ".pyx", ".ipynb", ".so", ".dll", ".dylib", ".pyz")
MAGIC = (
    *(b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\0", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"),
    *(b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"\x1f\x9d", b"!<arch>\n"),
)
NATIVE = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
_ADVICE = "formats that execute code when they are read are not served; "
PICKLE_MESSAGE = _ADVICE + "convert the weights to safetensors or ONNX"


class Torch(StrEnum):
    """The archives that PyTorch writes."""

    SCRIPT = "TorchScript"
    EXPORT = "torch.export"
    WEIGHTS = "checkpoint"


def by_name(path: str, *, allow_pickle: bool) -> None:
    """Refuse what its ending says."""
    lowered = path.lower()
    if lowered.endswith(PICKLED) and not allow_pickle:
        raise RefusedError(PICKLE_RULE, PICKLE_MESSAGE)
    if lowered.endswith(ARCHIVES):
        raise RefusedError(zips.RULE, "is an archive; add the files that are in it one by one")
    if lowered.endswith(CODE):
        raise RefusedError(CODE_RULE, "is code; models are served without code of their own")


def by_content(files: Files, path: str, *, allow_pickle: bool) -> Torch | None:
    """Refuse what it is, whatever its name; says which PyTorch archive it is, if one."""
    size = files.size(path)
    with files.open(path) as stream:
        head = stream.read(HEAD_BYTES)
        if not allow_pickle and (is_pickle(head) or holds_objects(head)):
            raise RefusedError(PICKLE_RULE, PICKLE_MESSAGE)
        listed = zips.directory(stream, size)
        if listed is not None:
            found = zips.members(stream, listed)
            torch = torch_archive([member.name for member in found])
            if torch is not None and not allow_pickle:
                raise RefusedError(PICKLE_RULE, PICKLE_MESSAGE)
            zips.check(stream, size, found)
            if torch is not None:
                return torch
    if listed is not None or head.startswith((b"PK\3\4", *MAGIC)) or _is_tar(head):
        raise RefusedError(zips.RULE, "is an archive; add the files that are in it one by one")
    if head.startswith(NATIVE):
        raise RefusedError(CODE_RULE, "is a program; models are served without code of their own")
    return None


def torch_archive(names: list[str]) -> Torch | None:
    """Which of PyTorch's archives has members of these names; NumPy's archives count too."""
    within = [name.partition("/")[2] for name in names]
    every = {*names, *within}
    if "archive_format" in every or any(
        name.startswith("models/") and name.endswith(".json") for name in every
    ):
        return Torch.EXPORT
    if "serialized_exported_program.json" in every:
        return Torch.EXPORT
    if not any(name.lower().endswith((".pkl", ".pickle", ".npy")) for name in names):
        return None
    if "constants.pkl" in every or any(name.startswith("code/") for name in within):
        return Torch.SCRIPT
    return Torch.WEIGHTS


def _is_tar(head: bytes) -> bool:
    """By its mark, or in its oldest form by the checksum of the first header."""
    block = head[:512]
    if block[257:262] == b"ustar":
        return True
    if len(block) < 512 or not block[0]:
        return False
    digits = block[148:156].strip(b" \0")
    try:
        return sum(block[:148]) + 8 * 32 + sum(block[156:]) == int(digits, 8)
    except ValueError:
        return False
