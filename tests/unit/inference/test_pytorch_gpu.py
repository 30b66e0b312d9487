"""What the PyTorch backend does with a GPU, on one that is a CPU: no call of CUDA is tested."""

from typing import Any

import pytest

from tests.unit.inference.pytorch_said import Said, by_torch

pytestmark = pytest.mark.timeout(600)

EXACT = 1e-5
ROWS = [1, 3, 2, 3, 5, 1, 2, 3]
STEPS = ("padded", "packed", "prepared", "refused", "archives", "kernel", "closing")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Said:
    """The steps about a GPU."""
    steps = ("made", "saved", *(f"gpu_{step}" for step in STEPS))
    return by_torch(tmp_path_factory.mktemp("models"), *steps)


def test_a_graph_is_captured_for_each_size_of_batch_and_length(said: Said) -> None:
    found = said["gpu_padded"]["graphs"]
    assert found["device"] == "cuda:0"
    assert found["captured"] == [[1, 16], [4, 32], [2, 16], [6, 32], [2, 64], [4, 64]]
    assert found["replays"] == len(ROWS)
    agrees(found)


def test_of_too_many_graphs_the_oldest_is_captured_anew(said: Said) -> None:
    found = said["gpu_padded"]["few"]
    assert found["captured"].count([1, 16]) == 2
    agrees(found)


@pytest.mark.parametrize("case", ["none", "failing"])
def test_without_graphs_batches_run_all_the_same(said: Said, case: str) -> None:
    found = said["gpu_padded"][case]
    assert (found["captured"], found["replays"]) == ([], 0)
    agrees(found)


def agrees(found: Any) -> None:
    """The answers of a CPU, for the rows that were asked for, through one buffer."""
    assert found["rows"] == ROWS
    assert found["difference"] < EXACT
    assert found["slots"] == 1


def test_a_batch_is_packed_where_that_is_smaller(said: Said) -> None:
    found = said["gpu_packed"]["graphs"]
    assert found["difference"] < EXACT
    assert found["captured"] == [
        *([1, 16], [1, 48, 5], [2, 16]),
        *([1, 128, 7], [1, 48, 3], [1, 96, 5]),
    ], "tokens and starts of the packed ones, rows and length of the others"
    # Each is computed once to capture it and once for each batch.
    assert found["calls"] == {"padded": 2 + 3, "packed": 4 + 5}


def test_without_graphs_only_padding_is_left_out(said: Said) -> None:
    found = said["gpu_packed"]["none"]
    assert found["difference"] < EXACT
    assert found["calls"] == {"padded": 2, "packed": 6}


def test_a_batch_is_prepared_on_one_instance_and_run_on_another(said: Said) -> None:
    found = said["gpu_prepared"]
    assert found["difference"] < EXACT
    assert found["inputs"], "it can still be read"
    assert found["slots"] == 3, "each has its own memory until it has run"


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("large", "input_ids: values must be from 0 to 30521"),
        ("negative", "input_ids: values must be from 0 to 30521"),
        ("type", "token_type_ids: values must be from 0 to 1"),
        ("long", "input_ids: 129 tokens are more than 128"),
        ("prepared", "input_ids: values must be from 0 to 30521"),
    ],
)
def test_what_would_end_the_device_does_not_reach_it(said: Said, case: str, why: str) -> None:
    assert said["gpu_refused"][case] == f"ValueError: {why}"
    assert float(said["gpu_refused"]["after"]) == 0.0, "it goes on"


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (
            "positions",
            "InvalidRequest: model.yaml: input.max_tokens: the model does not run on",
        ),
        ("bounds", "InvalidRequest: model.yaml: pytorch.bounds: a GPU needs it for input_ids"),
        ("unpadded", "InvalidRequest: model.yaml: pytorch.unpadded: the kernels of a GPU need"),
        ("absent", "FailedPrecondition: there is no device cuda:7 here"),
        ("no device", "InvalidRequest: device: 'tpu' is neither cpu nor cuda:N"),
    ],
)
def test_what_a_gpu_cannot_run_is_not_loaded(said: Said, case: str, why: str) -> None:
    assert said["gpu_refused"][case].startswith(why)


@pytest.mark.parametrize("form", ["script", "export"])
def test_archives_run_within_the_bounds_that_the_manifest_gives(said: Said, form: str) -> None:
    found = said["gpu_archives"][form]
    assert found["difference"] < EXACT
    assert found["bad"] == "ValueError: input_ids: values must be from 0 to 30521"


def test_the_kernel_takes_what_it_is_given(said: Said) -> None:
    assert said["gpu_kernel"] == {"shape": [1, 10, 2, 16], "type": "torch.bfloat16"}


def test_vectors_have_no_length_to_pad(said: Said) -> None:
    found = said["gpu_archives"]
    assert found["numbers"] == [[[2.0 * rows] * 2] * rows for rows in (3, 4, 5)]
    assert found["captured"] == [[4, 2], [8, 2]]


def test_closing_gives_everything_back_once(said: Said) -> None:
    found = said["gpu_closing"]
    assert (found["gone"], found["closed"]) == (True, 1)
    assert found["run"] == ["RuntimeError: the model is closed"] * 2
