"""The contracts: clean for buf, idempotency said, routes in order, zero values unspecified."""

import importlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import google.api.annotations_pb2 as annotations
import pytest
import yaml
from google import rpc as googleapis
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from gristmill.bounds.v1 import bounds_pb2
from gristmill.classifier.v1 import classifier_service_pb2
from gristmill.generator.v1 import generator_service_pb2
from gristmill.registry.v1 import registry_service_pb2

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, ServiceDescriptor] = {
    "classifier": classifier_service_pb2.DESCRIPTOR.services_by_name["ClassifierService"],
    "generator": generator_service_pb2.DESCRIPTOR.services_by_name["GeneratorService"],
    "registry": registry_service_pb2.DESCRIPTOR.services_by_name["RegistryService"],
}
METHODS = [method for service in SERVICES.values() for method in service.methods]
# Bytes in bulk have no JSON form; they stay gRPC.
# Parts of a resource that a request may hold and the server does not read.
SET_BY_THE_SERVER = (
    "gristmill.registry.v1.ModelVersion.rejections",
    "gristmill.registry.v1.Signature.",
    "gristmill.registry.v1.TensorSpec.",
)
WITHOUT_ROUTE = {"UploadArtifact", "DownloadArtifact"}


# buf, in a workspace of its own: what it needs of googleapis comes from the Python package.


def buf_path() -> str:
    """Where buf is; a machine without it fails, it does not skip."""
    beside = Path(sys.executable).with_name("buf")
    found = shutil.which("buf") or (str(beside) if beside.exists() else None)
    assert found, "buf is not installed: pip install buf-bin"
    return found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The modules of buf.yaml, as `make generate` lays them out."""
    folder = tmp_path_factory.mktemp("buf")
    shutil.copy(ROOT / "buf.yaml", folder)
    shutil.copytree(ROOT / "protos", folder / "protos")
    package = Path(next(iter(googleapis.__path__))).parent
    staged = folder / ".cache" / "googleapis" / "google"
    for name in ("api", "rpc", "longrunning"):
        (staged / name).mkdir(parents=True)
        for path in (package / name).glob("*.proto"):
            shutil.copy(path, staged / name / path.name.replace("operations_proto", "operations"))
    return folder


def buf(workspace: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run buf there."""
    return subprocess.run([buf_path(), *words], cwd=workspace, capture_output=True, check=False)


@pytest.mark.parametrize(
    "words", [["lint"], ["format", "-d", "--exit-code", "protos"]], ids=["lint", "format"]
)
def test_buf_finds_nothing(workspace: Path, words: list[str]) -> None:
    done = buf(workspace, *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_no_finding_is_excused() -> None:
    """Neither by configuration nor by comment; the Open Inference Protocol is not ours to name."""
    settings = yaml.safe_load((ROOT / "buf.yaml").read_text())
    (ours,) = (m for m in settings["modules"] if "protos/inference" in m.get("excludes", ()))
    assert set(ours) == {"path", "excludes"}
    assert settings["lint"] == {
        "use": ["STANDARD", "COMMENTS", "STABLE_PACKAGE_NO_IMPORT_UNSTABLE"],
        "disallow_comment_ignores": True,
    }
    assert settings["breaking"] == {"use": ["WIRE_JSON"]}
    for path in (ROOT / "protos" / "gristmill").rglob("*.proto"):
        assert "buf:lint:ignore" not in path.read_text()


def test_nothing_breaks_the_last_release(workspace: Path) -> None:
    """From the first tag on; before it there is nothing to break."""
    told = subprocess.run(
        ["git", "describe", "--tags", "--abbrev=0", "--match", "v*"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    )
    if told.returncode == 0:
        against = f"{ROOT / '.git'}#tag={told.stdout.strip()},subdir=protos"
        done = buf(workspace, "breaking", "protos", "--against", against)
        assert (done.returncode, done.stdout) == (0, b"")


@pytest.fixture(scope="module")
def image(workspace: Path) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """What buf reads from the files of the contract, comments and all."""
    done = buf(workspace, "build", "--as-file-descriptor-set", "-o", "-#format=binpb")
    assert done.returncode == 0, done.stderr
    files = descriptor_pb2.FileDescriptorSet.FromString(done.stdout).file
    return {file.name: file for file in files if file.name.startswith("gristmill/")}


def test_the_generated_python_is_the_contract(
    image: dict[str, descriptor_pb2.FileDescriptorProto],
) -> None:
    """Nobody changed one without the other."""
    assert len(image) > 15
    for name, file in image.items():
        module = importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
        generated = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(generated)
        bare = descriptor_pb2.FileDescriptorProto()
        bare.CopyFrom(file)
        bare.ClearField("source_code_info")
        assert without_json_names(generated) == without_json_names(bare), name


def without_json_names(file: descriptor_pb2.FileDescriptorProto) -> str:
    """The file as text, without the names that each tool may or may not write out."""
    return re.sub(r'\s+json_name: "[^"]*"', "", str(file))


# Comments, against the options that a machine reads.


@dataclass(frozen=True)
class Commented:
    """A field, its rules and what is written above it."""

    name: str
    options: Any
    comment: str

    @property
    def rules(self) -> bounds_pb2.Bounds:
        """Its bounds; empty where it has none."""
        found: bounds_pb2.Bounds = self.options.Extensions[bounds_pb2.field]
        return found


def commented(file: descriptor_pb2.FileDescriptorProto) -> Iterator[Commented]:
    """Every field of a file with its comment."""
    comments = {
        tuple(location.path): " ".join(location.leading_comments.split())
        for location in file.source_code_info.location
    }

    def fields(message: Any, path: tuple[int, ...], prefix: str) -> Iterator[Commented]:
        for index, one in enumerate(message.field):
            options = descriptor_pb2.FieldOptions.FromString(one.options.SerializeToString())
            yield Commented(f"{prefix}.{one.name}", options, comments.get((*path, 2, index), ""))
        for index, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                yield from fields(nested, (*path, 3, index), f"{prefix}.{nested.name}")

    for index, message in enumerate(file.message_type):
        yield from fields(message, (4, index), f"{file.package}.{message.name}")


AT_MOST = re.compile(r"at most ([\d,]+)( KiB| MiB| GiB)?", re.I)
UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def test_a_comment_that_names_a_limit_names_the_one_that_holds(
    image: dict[str, descriptor_pb2.FileDescriptorProto],
) -> None:
    checked, asked = 0, {field.full_name for field in every_field()}
    for file in image.values():
        for one in (one for one in commented(file) if one.name in asked):
            # Pages are cut rather than refused.
            told = "" if "more is taken as" in one.comment else one.comment
            for number, unit in AT_MOST.findall(told):
                rules = one.rules
                limits = {
                    getattr(rules, name)
                    for name in ("max_len", "max_items", "max")
                    if rules.HasField(name)
                }
                said = int(number.replace(",", "")) * UNITS[unit.strip()]
                assert said in limits, f"{one.name}: {one.comment!r} but {limits or 'no limit'}"
                checked += 1
    assert checked >= 20


def test_a_field_that_is_called_required_is_required(
    image: dict[str, descriptor_pb2.FileDescriptorProto],
) -> None:
    checked = 0
    for file in image.values():
        for one in commented(file):
            assert one.comment, f"{one.name} has no comment"
            if re.search(r"(^|\. )Required\.", one.comment):
                rules = one.rules
                assert rules.required or rules.min_items or rules.min_len, one.name
                checked += 1
    assert checked > 5


def test_bounds_make_sense(image: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    """A lower bound is not above its upper one, and a rule fits the kind of its field."""
    kinds = descriptor_pb2.FieldDescriptorProto
    for file in image.values():
        names = {one.name: one for one in commented(file)}
        for one in names.values():
            rules = one.rules
            for low, high in (("min_len", "max_len"), ("min", "max"), ("min_items", "max_items")):
                if rules.HasField(low) and rules.HasField(high):
                    assert getattr(rules, low) <= getattr(rules, high), one.name
            if rules.HasField("pattern"):
                re.compile(rules.pattern)
    for field in every_field():
        rules = field.GetOptions().Extensions[bounds_pb2.field]
        has_length = rules.HasField("max_len") or rules.min_len
        assert not has_length or field.type in (kinds.TYPE_STRING, kinds.TYPE_BYTES), (
            field.full_name
        )
        assert not rules.HasField("pattern") or field.type == kinds.TYPE_STRING, field.full_name
        counted = rules.HasField("max_items") or rules.min_items
        assert not counted or field.is_repeated, field.full_name


def every_field() -> Iterator[FieldDescriptor]:
    """Every field that a request of the contract can hold."""
    queue, seen = [method.input_type for method in METHODS], set()
    while queue:
        message = queue.pop()
        if message.full_name in seen or message.full_name.startswith("google."):
            continue
        seen.add(message.full_name)
        yield from message.fields
        queue += [field.message_type for field in message.fields if field.message_type]


def test_whatever_repeats_in_a_request_is_bounded() -> None:
    """A list without an end is a way to fill a server."""
    for field in every_field():
        if field.is_repeated and not field.full_name.startswith(SET_BY_THE_SERVER):
            rules = field.GetOptions().Extensions[bounds_pb2.field]
            assert rules.HasField("max_items"), field.full_name


# What every RPC and enum states.


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_every_rpc_states_its_idempotency(method: MethodDescriptor) -> None:
    assert method.GetOptions().HasField("idempotency_level")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_reads_have_no_side_effects_and_nothing_else_claims_so(method: MethodDescriptor) -> None:
    """A client retries by this."""
    level = method.GetOptions().idempotency_level
    reads = re.match(r"(Get|List|BatchGet|Resolve|Watch|Download|Count)", method.name)
    writes = re.match(r"(Create|Update|Delete|Set|Upload|Import|Archive|Load|Unload)", method.name)
    if reads:
        assert level == descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    if writes:
        assert level != descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS


def test_every_rpc_has_a_request_and_a_response_of_its_own() -> None:
    used = Counter(
        kind.full_name for method in METHODS for kind in (method.input_type, method.output_type)
    )
    assert set(used.values()) == {1}
    for method in METHODS:
        assert method.input_type.name == f"{method.name}Request"
        assert method.output_type.name == f"{method.name}Response"


def test_every_enum_begins_with_unspecified(
    image: dict[str, descriptor_pb2.FileDescriptorProto],
) -> None:
    found = 0
    for file in image.values():
        nested = [enum for message in file.message_type for enum in message.enum_type]
        for enum in (*file.enum_type, *nested):
            first = enum.value[0]
            assert first.number == 0
            assert first.name.endswith("_UNSPECIFIED")
            found += 1
    assert found > 5


# Routes.


@dataclass(frozen=True)
class Route:
    """One HTTP form of an RPC."""

    rpc: str
    verb: str
    path: str
    body: str

    @property
    def shape(self) -> str:
        """The path with `*` for each variable part."""
        return re.sub(r"\{[^}=]+(?:=([^}]*))?\}", lambda found: found[1] or "*", self.path)


@cache
def routes(method: MethodDescriptor) -> list[Route]:
    """The routes of an RPC, additional ones too."""
    options = method.GetOptions()
    if not options.HasExtension(annotations.http):
        return []
    rule = options.Extensions[annotations.http]
    found = []
    for one in (rule, *rule.additional_bindings):
        verb = one.WhichOneof("pattern")
        found.append(Route(method.full_name, verb, getattr(one, verb), one.body))
    return found


ROUTES = [route for method in METHODS for route in routes(method)]


@pytest.mark.parametrize("kind", SERVICES)
def test_every_rpc_is_routed_under_its_service(kind: str) -> None:
    for method in SERVICES[kind].methods:
        found = routes(method)
        assert bool(found) == (method.name not in WITHOUT_ROUTE), method.full_name
        for route in found:
            assert route.path.startswith(f"/{kind}/v1/"), route


def test_no_two_rpcs_share_a_route() -> None:
    assert len(ROUTES) > 30
    used = Counter((route.verb, route.shape) for route in ROUTES)
    assert [route for route, count in used.items() if count > 1] == []


def overlap(one: str, other: str) -> bool:
    """Whether some path fits both shapes."""
    split = [(*shape.rpartition("/")[0].split("/"), *last(shape)) for shape in (one, other)]
    return len(split[0]) == len(split[1]) and all(
        a == b or "*" in (a, b) for a, b in zip(*split, strict=True)
    )


def last(shape: str) -> tuple[str, str]:
    """The last part of a path, and its custom verb."""
    part, _, verb = shape.rpartition("/")[2].partition(":")
    return part, verb


def test_no_path_fits_two_routes() -> None:
    """Else the order in which a router was filled would decide."""
    for index, one in enumerate(ROUTES):
        for other in ROUTES[:index]:
            assert one.verb != other.verb or not overlap(one.shape, other.shape), (one, other)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.verb} {route.path}")
def test_a_route_names_fields_that_there_are(route: Route) -> None:
    method = next(method for method in METHODS if method.full_name == route.rpc)
    for variable in re.findall(r"\{([^}=]+)", route.path):
        message = method.input_type
        for name in variable.split("."):
            assert name in message.fields_by_name, variable
            message = message.fields_by_name[name].message_type
    if route.body not in ("", "*"):
        assert route.body in method.input_type.fields_by_name
    if route.verb in ("get", "delete"):
        assert not route.body, "a body that proxies may drop"
    elif not method.client_streaming:
        assert route.body, "where does the request go?"
