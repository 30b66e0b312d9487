"""Which files of a source make up a model, and which sources there are."""

import pytest
from pydantic import TypeAdapter, ValidationError

from services.registry.config import RegistryConfig
from services.registry.sources import Sources
from services.registry.sources.choosing import MOST_FILES, chosen
from services.registry.sources.settings import SourceSettings
from services.registry.sources.source import Listing, SourceFile
from services.runtime.errors import (
    SOURCE_NOT_FOUND,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
)

SETTINGS = TypeAdapter(dict[str, SourceSettings]).validate_python(
    {
        "hub": {"kind": "huggingface"},
        "store": {"kind": "object_store", "url": "s3://bucket/models"},
        "disk": {"kind": "folder", "path": "/srv/models"},
    }
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def listing(*paths: str, size: int | None = 1) -> Listing:
    """A listing of files of one size."""
    return Listing(path="m", files=tuple(SourceFile(path=p, size_bytes=size) for p in paths))


def kept(*paths: str) -> list[str]:
    """Those that are imported."""
    return [file.path for file in chosen(listing(*paths)).files]


@pytest.mark.parametrize(
    "path",
    [
        *(".gitattributes", ".cache/model.onnx", "sub/.hidden", "README.md", "README", "docs/a.md"),
        *("picture.PNG", "modeling_tiny.py", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"),
    ],
)
def test_what_no_backend_reads_is_left_out(path: str) -> None:
    assert kept("model.onnx", path) == ["model.onnx"]


@pytest.mark.parametrize(
    "path", ["LICENSE", "LICENSE.md", "config.json", "tokenizer.json", "vocab.txt", "sub/a.json"]
)
def test_what_belongs_to_a_model_is_kept(path: str) -> None:
    assert kept("model.onnx", path) == ["model.onnx", path]


@pytest.mark.parametrize("folder", ["onnx", "openvino", "coreml", "flax", "tf", "onnx_int8"])
def test_other_forms_are_left_out_beside_safetensors_at_the_top(folder: str) -> None:
    assert kept("model.safetensors", f"{folder}/model.onnx") == ["model.safetensors"]
    assert kept("sub/model.safetensors", f"{folder}/a.json") == [
        "sub/model.safetensors",
        f"{folder}/a.json",
    ]


@pytest.mark.parametrize("weights", ["model.safetensors", "sub/model.onnx", "model.gguf"])
def test_pickles_are_left_out_beside_other_weights(weights: str) -> None:
    assert kept(weights, "pytorch_model.bin", "a/b.pt", "c.pkl") == [weights]


def test_pickles_stay_where_they_are_all_there_is() -> None:
    """The check refuses them, and says why."""
    assert kept("config.json", "pytorch_model.bin") == ["config.json", "pytorch_model.bin"]


def test_what_was_left_out_is_told() -> None:
    assert chosen(listing("m.onnx", "b.py", "a.md")).facts == {"left_out": "a.md, b.py"}
    assert chosen(listing("m.onnx")).facts == {}
    many = chosen(listing("m.onnx", *(f"{'x' * 50}{n}.py" for n in range(100))))
    assert len(many.facts["left_out"]) == 500


@pytest.mark.parametrize(
    "path",
    ["with space.onnx", "line\nbreak.onnx", "/abs.onnx", "a//b.onnx", "ö.onnx"],
)
def test_a_file_whose_name_no_artifact_may_have_is_named(path: str) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        kept("model.onnx", path)
    assert ascii(path) in refused.value.message
    assert refused.value.message.isprintable()


def test_a_model_is_bounded() -> None:
    with pytest.raises(FailedPrecondition, match="at most 4,096 files, not 4,097"):
        kept(*(f"f{n}" for n in range(MOST_FILES + 1)))
    assert len(chosen(listing("a", "b", size=5), 10).files) == 2
    with pytest.raises(FailedPrecondition, match="larger than the 9 bytes"):
        chosen(listing("a", "b", size=5), 9)


def test_nothing_to_import_is_not_found() -> None:
    with pytest.raises(NotFound):
        kept("README.md")


def test_sources_by_their_ids() -> None:
    sources = Sources(SETTINGS)
    assert sources.kinds == {"hub": "huggingface", "store": "object_store", "disk": "folder"}
    sources.check("hub", "acme/tiny", COMMIT)
    sources.check("disk", "a/b-c.d", "")
    sources.check("store", "a/b", "")
    with pytest.raises(NotFound) as refused:
        sources.check("other", "a", "")
    assert refused.value.reason_given == SOURCE_NOT_FOUND


@pytest.mark.parametrize(
    ("source", "path", "revision", "field"),
    [
        *(("disk", path, "", "path") for path in ("", "/etc", "..", "a/../b", "a//b", "a/", "a\n")),
        *(("store", path, "", "path") for path in ("", "/a", "../a", "a\0b", ".hidden", "a" * 513)),
        ("disk", "a", "main", "revision"),
        ("store", "a", "1", "revision"),
        *(("hub", path, COMMIT, "path") for path in ("tiny", "a/b/c", "../b", "a/..", "a/b?x=1")),
        *(("hub", "a/b", said, "revision") for said in ("", "main", COMMIT[:7], COMMIT.upper())),
        ("hub", "a/b", COMMIT + "\n", "revision"),
    ],
)
def test_what_a_source_cannot_have_names_the_field(
    source: str, path: str, revision: str, field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Sources(SETTINGS).check(source, path, revision)
    assert refused.value.violations[0].field == field


def test_a_branch_is_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidRequest, match="pin it to a commit"):
        Sources(SETTINGS).check("hub", "a/b", "main")


@pytest.mark.parametrize(
    "given",
    [
        {"Hub": {"kind": "huggingface"}},
        {"-": {"kind": "huggingface"}},
        {"a": {"kind": "ftp"}},
        {"a": {"kind": "folder"}},
        {"a": {"kind": "folder", "path": "/a", "url": "s3://a"}},
        {"a": {"kind": "huggingface", "endpoint": "file:///etc"}},
    ],
)
def test_a_source_that_cannot_be_stops_the_start(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RegistryConfig(sources=given)
    with pytest.raises(ValueError, match="no object store"):
        Sources(
            TypeAdapter(dict[str, SourceSettings]).validate_python(
                {"a": {"kind": "object_store", "url": "https://x/y"}}
            )
        )


def test_the_options_of_a_store_are_not_shown() -> None:
    given = {"a": {"kind": "object_store", "url": "s3://b", "options": {"secret": "hush"}}}
    assert "hush" not in repr(RegistryConfig(sources=given))
