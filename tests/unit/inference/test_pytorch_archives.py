"""Models that PyTorch saved whole: what they say of themselves, and what the manifest must say."""

from typing import Any

import pytest

from tests.unit.inference.pytorch_said import Said, by_torch

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Said:
    """The steps about archives."""
    steps = ("scripts", "scripts_refused", "exports")
    return by_torch(tmp_path_factory.mktemp("models"), *steps)


def spec(name: str, *shape: int, datatype: str = "FP32") -> list[Any]:
    """A tensor as the steps tell of it."""
    return [name, datatype, list(shape)]


@pytest.mark.parametrize(("case", "width"), [("numbers", -1), ("named numbers", 2)])
def test_a_vector_is_as_wide_as_the_manifest_says(said: Said, case: str, width: int) -> None:
    assert said["scripts"][case] == {
        "inputs": [spec("x", -1, width)],
        "outputs": [spec("logits", -1, width)],
        "gives": {"logits": ["float32", [[2.0, 4.0]]]},
    }


def test_an_image_is_as_the_manifest_says(said: Said) -> None:
    found = said["scripts"]
    assert (found["image"], found["gray"]) == ([-1, 3, 4, 5], [-1, 4, 5, 1])


def test_token_inputs_have_the_names_of_the_signature(said: Said) -> None:
    assert said["scripts"]["text"] == ["input_ids", "attention_mask", "token_type_ids"]


def test_outputs_keep_their_names_and_floating_points_become_float32(said: Said) -> None:
    found = said["scripts"]["by name"]
    assert found["outputs"] == [spec("logits", -1, -1), spec("count", -1, datatype="INT64")]
    assert found["gives"] == {"logits": ["float32", [[1.0, 2.0]]], "count": ["int64", [2]]}
    assert [name for name, _, _ in said["scripts"]["named"]["outputs"]] == [
        "probabilities",
        "width",
    ]


def test_the_manifest_names_inputs_and_outputs(said: Said) -> None:
    found = said["scripts"]["pair"]
    other = spec("other", -1, -1, datatype="INT32")
    assert found["inputs"] == [spec("a", -1, 2), spec("b", -1, -1, datatype="INT32")]
    assert found["outputs"] == [spec("logits", -1, 2), other]
    assert found["gives"] == {
        "logits": ["float32", [[4.0, 5.0]]],
        "other": ["int32", [[3, 4, 5]]],
    }
    assert said["scripts"]["probabilities"]["outputs"] == [spec("probabilities", -1, -1)]


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("untold", "pytorch.inputs: is required: the file only says forward("),
        ("not tokens", "pytorch.inputs: is required: the file only says forward("),
        ("two vectors", "pytorch.inputs: is required: the file only says forward("),
        ("one length", "pytorch.inputs: the model does not run on 2 rows of size 32: Runtime"),
        ("too many", "pytorch.inputs: the model does not run on 2 rows of size 32: forward()"),
        ("outputs", "pytorch.outputs: names 1, the model gives 2"),
        ("type", "pytorch.dtype: is for Hugging Face folders"),
        ("unpadded", "pytorch.unpadded: needs a Hugging Face folder"),
    ],
)
def test_what_torchscript_does_not_tell_is_asked_for(said: Said, case: str, why: str) -> None:
    assert said["scripts_refused"][case].startswith(f"InvalidRequest: model.yaml: {why}")


def test_a_batch_of_one_size_is_refused(said: Said) -> None:
    why = "InvalidRequest: model: x is [4, -1]: the first dimension must be any batch"
    assert said["scripts_refused"]["fixed batch"] == why
    assert said["exports"]["fixed"] == why.replace("[4, -1]", "[2, 3]")


def test_an_export_is_called_as_it_was_exported(said: Said) -> None:
    found = said["exports"]["keywords"]
    assert found["inputs"] == [spec("x", -1, 3), spec("y", -1, 3)]
    assert found["outputs"] == [spec("logits", -1, 3)]
    assert found["gives"] == {"logits": ["float32", [[0.0, 0.5, 1.0], [1.5, 2.0, 2.5]]]}


def test_an_export_takes_other_names_from_the_manifest(said: Said) -> None:
    found = said["exports"]["renamed"]
    assert found["inputs"] == [spec("mine", -1, 3)]
    assert found["outputs"] == [spec("probabilities", -1, 3)]
    assert found["gives"]["probabilities"][1][1] == [6.0, 8.0, 10.0]
    assert said["exports"]["many"].endswith("pytorch.inputs: names 2, the model takes 1")


def test_an_export_holds_to_the_sizes_it_was_made_for(said: Said) -> None:
    assert "x.size()[0] <= 64" in said["exports"]["too large"]
