"""From path, query and body to a message: each kind of field, both names, paths of faults."""

import json
from typing import Any

import pytest
from google.protobuf import json_format
from gristmill.classifier.v1 import classifier_service_pb2 as classifier
from gristmill.generator.v1 import generator_service_pb2 as generator
from gristmill.registry.v1 import model_pb2
from gristmill.registry.v1 import registry_service_pb2 as registry
from hypothesis import given
from hypothesis import strategies as st

from gateway import binding, jsontree, query, shape
from gateway.app import table_of
from services.runtime.errors import InvalidRequest

TABLE = table_of()
# json_format writes the largest floats rounded up, and then does not take them.
NUMBERS = st.floats(-(2.0**126), 2.0**126, width=32) | st.just(float("inf"))


def request(http_method: str, path: str, body: Any = None, query_string: str = "") -> Any:
    """The message that a request makes."""
    match = TABLE.match(http_method, path)
    assert match is not None
    assert match.route is not None
    encoded = b"" if body is None else json.dumps(body).encode()
    return binding.build(match.route, match.variables, query_string.encode(), encoded, 100)


def refused(http_method: str, path: str, body: Any = None, query_string: str = "") -> list[str]:
    """The paths of the fields for which a request is refused."""
    with pytest.raises(InvalidRequest) as caught:
        request(http_method, path, body, query_string)
    return [violation.field for violation in caught.value.violations]


class TestBinding:
    def test_a_path_variable_reaches_into_the_body(self) -> None:
        made = request("PATCH", "/registry/v1/models/m", {"description": "d"}, "updateMask=labels")
        assert made.model.name == "models/m"
        assert made.model.description == "d"
        assert list(made.update_mask.paths) == ["labels"]

    def test_the_body_may_repeat_the_path_but_not_contradict_it(self) -> None:
        made = request("PATCH", "/registry/v1/models/m", {"name": "models/m"})
        assert made.model.name == "models/m"
        assert refused("PATCH", "/registry/v1/models/m", {"name": "models/n"}) == ["model.name"]
        assert refused("POST", "/registry/v1/models/m:archive", {"name": "models/n"}) == ["name"]

    def test_no_body_is_an_empty_one(self) -> None:
        made = request("POST", "/registry/v1/models/m:archive")
        assert made == registry.ArchiveModelRequest(name="models/m")

    def test_bodies_and_queries_where_there_are_none(self) -> None:
        assert refused("GET", "/registry/v1/models/m", {}) == []
        assert refused("POST", "/classifier/v1/classify", {}, "priority=3") == []
        assert refused("GET", "/registry/v1/models/m", None, "name=models/n") == ["name"]
        assert refused("PATCH", "/registry/v1/models/m", {}, "model.etag=x") == ["model.etag"]


class TestQuery:
    def test_every_kind_of_parameter(self) -> None:
        made = request(
            "GET",
            "/registry/v1/watch",
            query_string="afterRevision=9007199254740993&names=models/a&names=models%2Fb"
            "&task=TASK_GENERATION&bookmark_interval=1.5s",
        )
        assert made.after_revision == 2**53 + 1
        assert list(made.names) == ["models/a", "models/b"]
        assert made.task == model_pb2.TASK_GENERATION
        assert made.bookmark_interval.ToMilliseconds() == 1500

    def test_fields_of_messages(self) -> None:
        made = request(
            "GET", "/registry/v1/models:resolve", query_string="model.model=m&model.version=3"
        )
        assert made.model == model_pb2.ModelRef(model="m", version=3)

    def test_timestamps_and_masks(self) -> None:
        path = "/registry/v1/models/m/history"
        made = request("GET", path, query_string="at_time=2026-01-02T03:04:05Z")
        assert made.at_time.ToJsonString() == "2026-01-02T03:04:05Z"
        for mask in ("latest_version,labels", "latestVersion,labels"):
            made = request("PATCH", "/registry/v1/models/m", {}, f"updateMask={mask}")
            assert list(made.update_mask.paths) == ["latest_version", "labels"]

    @pytest.mark.parametrize(
        ("query_string", "path"),
        [
            ("nothing=1", "nothing"),
            ("pageSize=1&page_size=2", "page_size"),
            ("pageSize=x", "page_size"),
            ("pageSize=99999999999", "page_size"),
            ("pageSize.more=1", "pageSize.more"),
        ],
    )
    def test_faults(self, query_string: str, path: str) -> None:
        assert refused("GET", "/registry/v1/models", None, query_string) == [path]

    def test_what_a_query_cannot_say(self) -> None:
        assert refused("GET", "/registry/v1/models:resolve", None, "model=m") == ["model"]
        descriptor = registry.CreateModelRequest.DESCRIPTOR
        for name in ("model.labels", "model.labels.team"):
            with pytest.raises(InvalidRequest):
                query.tree_of(descriptor, f"{name}=x".encode(), ())

    @given(st.text(max_size=40))
    def test_no_query_string_is_a_crash(self, text: str) -> None:
        descriptor: Any = registry.WatchRequest.DESCRIPTOR
        try:
            tree = query.tree_of(descriptor, text.encode(), ())
            shape.fill(registry.WatchRequest(), tree)
        except InvalidRequest:
            pass

    def test_false_is_not_true(self) -> None:
        made = request("DELETE", "/registry/v1/models/m", None, "force=false&validateOnly=true")
        assert (made.force, made.validate_only) == (False, True)
        assert refused("DELETE", "/registry/v1/models/m", None, "force=1") == ["force"]


class TestShape:
    @pytest.mark.parametrize(
        ("tree", "paths"),
        [
            ({"prompts": {}}, ["prompts"]),
            ({"prompts": [None]}, ["prompts[0]"]),
            ({"params": {"seed": -1, "n": 1.5, "x": 0}}, ["params.seed", "params.n", "params.x"]),
            ({"params": {"temperature": "hot"}}, ["params.temperature"]),
            ({"params": {"ignoreEos": "true"}}, ["params.ignore_eos"]),
            ({"params": {"logitBias": {"a": 1, "5": "x"}}}, ["params.logit_bias[a]"] * 1
             + ["params.logit_bias[5]"]),
            ({"params": {"stop": "x"}}, ["params.stop"]),
            ({"params": {"stop": ["\ud800"]}}, ["params.stop[0]"]),
            ({"params": {"topK": 1, "top_k": 1}}, ["params.top_k"]),
            ({"prompts": [{"chat": {"messages": [{"role": "KING"}]}}]},
             ["prompts[0].chat.messages[0].role"]),
            ({"prompts": [{"text": {"text": "a"}, "tokens": {"ids": []}}]}, ["prompts[0].tokens"]),
            ("text", ["body"]),
        ],
    )  # fmt: skip
    def test_each_fault_has_its_path(self, tree: Any, paths: list[str]) -> None:
        with pytest.raises(InvalidRequest) as caught:
            shape.fill(generator.GenerateRequest(), tree)
        assert [violation.field for violation in caught.value.violations] == paths

    def test_bytes_durations_and_wide_integers(self) -> None:
        made = classifier.ClassifyRequest()
        shape.fill(made, {"items": [{"image": {"data": "AP_-"}}, {"image": {"data": "AP/+"}}]})
        assert [item.image.data for item in made.items] == [b"\x00\xff\xfe"] * 2
        for data in ("!", "A", 5):
            with pytest.raises(InvalidRequest, match=r"base64|string"):
                shape.fill(made, {"items": [{"image": {"data": data}}]})
        with pytest.raises(InvalidRequest, match="bookmark_interval"):
            shape.fill(registry.WatchRequest(), {"bookmarkInterval": "soon"})
        params = generator.GenerateRequest()
        shape.fill(params, {"params": {"seed": str(2**64 - 1)}})
        assert params.params.seed == 2**64 - 1

    def test_numbers_too_large_for_their_field(self) -> None:
        for value in (10**400, 1e39):
            with pytest.raises(InvalidRequest, match=r"params\.temperature: must be from"):
                shape.fill(generator.GenerateRequest(), {"params": {"temperature": value}})

    def test_null_is_absence(self) -> None:
        made = generator.GenerateRequest()
        shape.fill(made, {"params": None, "priority": None})
        assert made == generator.GenerateRequest()

    def test_many_faults_are_cut_short(self) -> None:
        with pytest.raises(InvalidRequest) as caught:
            shape.fill(classifier.ClassifyRequest(), {"items": [{"x": 1}] * 1000})
        assert len(caught.value.violations) == 32

    @given(st.binary(max_size=20), st.text(max_size=20), NUMBERS)
    def test_what_json_format_writes_is_taken(self, data: bytes, text: str, number: float) -> None:
        made = classifier.ClassifyRequest(priority=3)
        made.model.model = text.encode(errors="ignore").decode()
        made.items.add().image.data = data
        made.items.add().float_features.values.append(number)
        again = classifier.ClassifyRequest()
        tree = json.loads(json_format.MessageToJson(made))
        shape.fill(again, tree)
        assert again == made


class TestJsonTree:
    @pytest.mark.parametrize(
        ("body", "says"),
        [
            (b"{", "not JSON"),
            (b'{"a":1,"a":2}', "appears twice"),
            (b"NaN", "NaN is not JSON"),
            (b"[Infinity]", "Infinity is not JSON"),
            (b'"\xff"', "UTF-8"),
            ("{}".encode("utf-16"), "UTF-8|not JSON"),
            (b"\xef\xbb\xbf{}", "not JSON"),
            (b"[" * 101 + b"]" * 101, "deeper than 100"),
            (b"[" * 100_000, "deeper than 100"),
            (b"1" * 5000, "not JSON"),
            (b"[" + b"[]," * 600_000 + b"[]]", "arrays and objects"),
        ],
    )
    def test_refused(self, body: bytes, says: str) -> None:
        with pytest.raises(InvalidRequest, match=says):
            jsontree.parse(body, 100)

    def test_brackets_in_strings_are_text(self) -> None:
        text = "[{" * 400_000
        assert jsontree.parse(json.dumps([text]).encode(), 100) == [text]

    def test_depth_is_counted_along_the_deepest_path(self) -> None:
        assert jsontree.parse(b'{"a":[{"b":[]}],"c":[[]]}', 4)
        assert jsontree.too_deep([[[]]], 2)
        assert not jsontree.too_deep("text", 0)
