"""The comments of the contract, by full name. They are not in the descriptors at run time.

`make generate` writes them to contract.binpb: the descriptors of our own files with their source.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from google.protobuf import descriptor_pb2

CONTRACT = Path(__file__).parent / "contract.binpb"
Comments = Mapping[str, str]
_Path = tuple[int, ...]

# Google's own are written for those who implement it.
_OPERATIONS = {
    "google.longrunning.Operations": "Long work: imports, conversions, evaluations, validation.",
    "google.longrunning.Operations.GetOperation": "Reads an operation; poll it until `done`.",
    "google.longrunning.Operations.ListOperations": "Lists operations.",
    "google.longrunning.Operations.DeleteOperation": "Forgets an operation that has ended.",
    "google.longrunning.Operations.CancelOperation": "Asks an operation to end. It may end well.",
    "google.longrunning.Operations.WaitOperation": "Waits for an operation, at most for a time.",
}


def read(file: Path = CONTRACT) -> dict[str, str]:
    """The comments of every element: packages' messages, fields, oneofs, enums, values, methods."""
    found = descriptor_pb2.FileDescriptorSet.FromString(file.read_bytes())
    own = {name: text for one in found.file for name, text in _of_file(one)}
    return own | _OPERATIONS


def _of_file(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, str]]:
    texts: dict[_Path, str] = {
        tuple(location.path): _joined(location.leading_comments)
        for location in file.source_code_info.location
        if location.leading_comments
    }
    for path, name in _elements(file):
        if path in texts:
            yield name, texts[path]


def _elements(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[_Path, str]]:
    for index, message in enumerate(file.message_type):
        yield from _message((4, index), f"{file.package}.{message.name}", message)
    for index, enum in enumerate(file.enum_type):
        yield from _enum((5, index), f"{file.package}.{enum.name}", enum)
    for index, service in enumerate(file.service):
        name = f"{file.package}.{service.name}"
        yield (6, index), name
        yield from _named((6, index, 2), name, service.method)


def _message(
    path: _Path, name: str, message: descriptor_pb2.DescriptorProto
) -> Iterator[tuple[_Path, str]]:
    yield path, name
    yield from _named((*path, 2), name, message.field)
    yield from _named((*path, 8), name, message.oneof_decl)
    for index, nested in enumerate(message.nested_type):
        yield from _message((*path, 3, index), f"{name}.{nested.name}", nested)
    for index, enum in enumerate(message.enum_type):
        yield from _enum((*path, 4, index), f"{name}.{enum.name}", enum)


def _enum(
    path: _Path, name: str, enum: descriptor_pb2.EnumDescriptorProto
) -> Iterator[tuple[_Path, str]]:
    yield path, name
    yield from _named((*path, 2), name, enum.value)


def _named(
    path: _Path,
    owner: str,
    elements: "Iterable[_Element]",
) -> Iterator[tuple[_Path, str]]:
    for index, element in enumerate(elements):
        yield (*path, index), f"{owner}.{element.name}"


_Element = (
    descriptor_pb2.FieldDescriptorProto
    | descriptor_pb2.OneofDescriptorProto
    | descriptor_pb2.EnumValueDescriptorProto
    | descriptor_pb2.MethodDescriptorProto
)


def _joined(comment: str) -> str:
    """The comment without the line breaks of its source; paragraphs stay."""
    paragraphs = comment.strip().split("\n\n")
    return "\n\n".join(" ".join(line.strip() for line in p.splitlines()) for p in paragraphs)


def summary(text: str) -> str:
    """The first sentence, without its full stop."""
    head, dot, _ = text.partition(". ")
    return head if dot else text.rstrip(".")
