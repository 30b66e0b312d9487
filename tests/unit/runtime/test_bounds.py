"""Each rule of the contract's bounds, on every shape of field, from gristmill/bounds/v1."""

import itertools
import math
import string
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from gristmill.bounds.v1 import bounds_pb2
from gristmill.classifier.v1 import classifier_service_pb2 as classifier_pb
from gristmill.classifier.v1 import item_pb2, options_pb2
from gristmill.generator.v1 import generator_service_pb2 as generator_pb
from gristmill.registry.v1 import registry_service_pb2 as registry_pb
from hypothesis import given, settings
from hypothesis import strategies as st

from services.runtime import bounds as bounds_module
from services.runtime.bounds import MAX_VIOLATIONS, Bounds
from services.runtime.errors import INVALID_FIELD, InvalidRequest, Violation
from tests.harness import item, request

Proto = descriptor_pb2.FieldDescriptorProto
STRING, BYTES, DOUBLE, FLOAT = Proto.TYPE_STRING, Proto.TYPE_BYTES, Proto.TYPE_DOUBLE, 2
INT32, UINT64, MESSAGE = Proto.TYPE_INT32, Proto.TYPE_UINT64, Proto.TYPE_MESSAGE
_names = (f"t{number}" for number in itertools.count())


def field(name: str, kind: Any, type_name: str = "", **bounds: Any) -> Proto:
    """A field with bounds; numbers are given by `message_class`."""
    made = Proto(name=name, type=kind, label=Proto.LABEL_OPTIONAL)
    if type_name:
        made.type_name = type_name
    if bounds:
        made.options.Extensions[bounds_pb2.field].CopyFrom(bounds_pb2.Bounds(**bounds))
    return made


def repeated(made: Proto) -> Proto:
    """The same field, repeated."""
    made.label = Proto.LABEL_REPEATED
    return made


def optional(made: Proto) -> Proto:
    """The same field with presence, as `optional` gives it."""
    made.proto3_optional = True
    return made


def message_classes(**fields_of: Sequence[Proto]) -> dict[str, Any]:
    """Message classes of a package of their own, in a pool of their own."""
    package = next(_names)
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto3"
    )
    for name, fields in fields_of.items():
        message = file.message_type.add(name=name)
        for number, one in enumerate(fields, start=1):
            added = message.field.add()
            added.CopyFrom(one)
            added.number = number
            if one.type_name:
                added.type_name = f".{package}.{one.type_name}"
            if one.proto3_optional:
                added.oneof_index = len(message.oneof_decl)
                message.oneof_decl.add(name=f"_{one.name}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in fields_of
    }


def message_class(*fields: Proto) -> Any:
    """A message class with these fields."""
    return message_classes(M=fields)["M"]


def choices(
    *oneofs: Sequence[Proto], others: Sequence[Proto] = (), **more: Sequence[Proto]
) -> dict[str, Any]:
    """A message class `M` with these oneofs, `choice0` and so on, beside other fields and types."""
    package = next(_names)
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto3"
    )
    message = file.message_type.add(name="M")
    for index in range(len(oneofs)):
        message.oneof_decl.add(name=f"choice{index}")
    numbered = itertools.count(1)
    for index, members in enumerate(oneofs):
        for one in members:
            _added(message, one, next(numbered), package).oneof_index = index
    for one in others:
        added = _added(message, one, next(numbered), package)
        if one.proto3_optional:
            # The oneof that an optional field is alone in comes after all others.
            added.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{one.name}")
    for name, plain in more.items():
        message = file.message_type.add(name=name)
        for number, one in enumerate(plain, start=1):
            _added(message, one, number, package)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in ("M", *more)
    }


def _added(message: Any, one: Proto, number: int, package: str) -> Proto:
    added: Proto = message.field.add()
    added.CopyFrom(one)
    added.number = number
    if one.type_name:
        added.type_name = f".{package}.{one.type_name}"
    return added


def map_class(value: Proto, **bounds: Any) -> Any:
    """A message class with `map<string, value> m` and bounds on the map."""
    package = next(_names)
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto3"
    )
    inner = file.message_type.add(name="Inner")
    inner.field.append(field("text", STRING, max_len=3))
    inner.field[0].number = 1
    message = file.message_type.add(name="M")
    entry = message.nested_type.add(name="MEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=STRING, label=Proto.LABEL_OPTIONAL)
    value.number = 2
    if value.type_name:
        value.type_name = f".{package}.{value.type_name}"
    entry.field.append(value)
    whole = repeated(field("m", MESSAGE, **bounds))
    whole.number, whole.type_name = 1, f".{package}.M.MEntry"
    message.field.append(whole)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.M"))


def violations(message: Message) -> list[Violation]:
    """What is wrong with a message, by its bounds."""
    try:
        Bounds().check(message)
    except InvalidRequest as error:
        assert error.reason_given == INVALID_FIELD
        assert error.violations
        return list(error.violations)
    return []


def paths(message: Message) -> list[str]:
    """The paths of the fields that are wrong."""
    return [violation.field for violation in violations(message)]


@pytest.mark.parametrize(
    ("kind", "bounds", "taken", "refused"),
    [
        (STRING, {"min_len": 2}, ["ab", "äö", "", "abc"], ["a", "ä"]),
        (STRING, {"max_len": 2}, ["", "ab", "äö", "\U0001f600\U0001f600"], ["abc", "äöü"]),
        (BYTES, {"min_len": 2}, [b"ab", b"", b"\0\0"], [b"a"]),
        (BYTES, {"max_len": 2}, [b"", b"ab"], [b"abc", "äö".encode()]),
        (STRING, {"pattern": "[a-z]+"}, ["abc", ""], ["abc1", "1abc", "ABC", "abc\n", "\nabc"]),
        (STRING, {"pattern": "a|b"}, ["a", "b"], ["ab", "ac", "bb"]),
        (STRING, {"pattern": r"\d+"}, ["12"], ["\u0661\u0662", "1\u0662"]),
        (INT32, {"min": 3}, [3, 4, 0, 2**31 - 1], [2, -1, -(2**31)]),
        (INT32, {"max": 3}, [3, 0, -5], [4, 2**31 - 1]),
        (UINT64, {"max": 9}, [0, 9], [10, 2**64 - 1]),
        (DOUBLE, {"min": 0.5}, [0.5, 0.0, math.inf], [0.4999, -1.0, -math.inf, math.nan]),
        (DOUBLE, {"max": 0.5}, [0.5, -math.inf], [0.5001, math.inf, math.nan]),
        (DOUBLE, {"greater_than": 0.5}, [0.5001, 0.0], [0.5, 0.4, math.nan]),
        (DOUBLE, {"greater_than": 0.0, "max": 1.0}, [1.0, 1e-300], [1.0001, -1.0, math.nan]),
        (FLOAT, {"min": 0.0, "max": 2.0}, [0.0, 2.0], [2.1, -0.1, math.nan, math.inf]),
        (FLOAT, {"max": 0.1}, [0.1], [0.11]),
        (FLOAT, {"min": 0.7}, [0.7], [0.69]),
    ],
)
def test_a_rule_on_a_value(
    kind: Any, bounds: dict[str, Any], taken: list[Any], refused: list[Any]
) -> None:
    plain = message_class(field("f", kind, **bounds))
    many = message_class(repeated(field("f", kind, **bounds)))
    for value in taken:
        assert paths(plain(f=value)) == [], value
    for value in refused:
        assert paths(plain(f=value)) == ["f"], value
        assert paths(many(f=[taken[0], value])) == ["f[1]"], value


def test_a_value_rule_applies_only_to_what_is_present() -> None:
    """For a field without presence the default is absence; with presence it is a value."""
    rules = {"min": 3.0}
    assert paths(message_class(field("f", INT32, **rules))(f=0)) == []
    with_presence = message_class(optional(field("f", INT32, **rules)))
    assert paths(with_presence()) == []
    assert paths(with_presence(f=0)) == ["f"]
    assert paths(options_pb2.ClassifyOptions(top_k=0)) == ["top_k"]
    assert paths(options_pb2.ClassifyOptions()) == []


def test_elements_have_no_absence() -> None:
    many = message_class(repeated(field("f", INT32, min=3.0)))
    assert paths(many(f=[3, 0])) == ["f[1]"]
    texts = message_class(repeated(field("f", STRING, min_len=1)))
    assert paths(texts(f=["a", ""])) == ["f[1]"]


@pytest.mark.parametrize(
    ("made", "absent", "present"),
    [
        (field("f", STRING, required=True), {}, {"f": "a"}),
        (field("f", INT32, required=True), {"f": 0}, {"f": 1}),
        (field("f", BYTES, required=True), {"f": b""}, {"f": b"\0"}),
        (optional(field("f", INT32, required=True)), {}, {"f": 0}),
        (repeated(field("f", STRING, required=True)), {"f": []}, {"f": [""]}),
    ],
)
def test_required(made: Proto, absent: dict[str, Any], present: dict[str, Any]) -> None:
    cls = message_class(made)
    assert paths(cls(**absent)) == ["f"]
    assert paths(cls(**present)) == []


def test_a_required_message_is_present_though_empty() -> None:
    assert paths(classifier_pb.LoadModelRequest()) == ["model"]
    assert paths(classifier_pb.LoadModelRequest(model={})) == []


def test_counts_of_repeated_fields() -> None:
    cls = message_class(repeated(field("f", INT32, min_items=2, max_items=3)))
    assert [paths(cls(f=[1] * n)) for n in range(5)] == [["f"], ["f"], [], [], ["f"]]


def test_counts_and_values_of_maps() -> None:
    cls = map_class(field("value", INT32), min_items=1, max_items=2, min=5.0)
    assert paths(cls()) == ["m"]
    assert paths(cls(m={"a": 5})) == []
    assert paths(cls(m={"a": 5, "b": 4})) == ["m[b]"]
    assert paths(cls(m={"a": 0})) == ["m[a]"]
    assert paths(cls(m={"a": 5, "b": 5, "c": 5})) == ["m"]


def test_a_required_map_has_an_entry() -> None:
    cls = map_class(field("value", INT32), required=True)
    assert paths(cls()) == ["m"]
    assert paths(cls(m={"a": 0})) == []


def test_messages_in_maps_are_looked_into() -> None:
    cls = map_class(field("value", MESSAGE, "Inner"))
    message = cls()
    message.m["good"].text = "abc"
    assert paths(message) == []
    message.m["bad"].text = "abcd"
    assert paths(message) == ["m[bad].text"]


def test_bounds_of_a_contract_map_hold() -> None:
    assert paths(registry_pb.CreateModelRequest(model={"labels": {"k": "v"}})) != ["model.labels"]
    many = {str(n): "v" for n in range(65)}
    assert "model.labels" in paths(registry_pb.CreateModelRequest(model={"labels": many}))


def test_durations_are_seconds() -> None:
    def timed(timeout: Duration) -> classifier_pb.ClassifyBidiRequest:
        entry = classifier_pb.BidiItem(id="a", item=item())
        return classifier_pb.ClassifyBidiRequest(items=[entry], timeout=timeout)

    assert paths(timed(Duration(nanos=1_000_000))) == []
    assert paths(timed(Duration(seconds=3600))) == []
    assert paths(timed(Duration())) == ["timeout"]
    assert paths(timed(Duration(nanos=999_999))) == ["timeout"]
    assert paths(timed(Duration(seconds=3600, nanos=1))) == ["timeout"]
    assert paths(timed(Duration(seconds=-1))) == ["timeout"]


def test_paths_lead_to_the_nested_field() -> None:
    tensors = item_pb2.NamedTensors(
        tensors=[
            item_pb2.Tensor(datatype=item_pb2.DATATYPE_FP32),
            item_pb2.Tensor(name="n" * 257, shape=[1] * 17),
        ]
    )
    message = request("fine")
    message.items.append(item_pb2.Item(tensors=tensors))
    assert sorted(paths(message)) == [
        "items[1].tensors.tensors[1].datatype",
        "items[1].tensors.tensors[1].name",
        "items[1].tensors.tensors[1].shape",
    ]


def test_only_the_chosen_arm_of_a_oneof_is_checked() -> None:
    assert paths(request("x" * 1_000_000)) == []
    assert paths(request("x" * 1_000_001)) == ["items[0].text.text"]
    image = classifier_pb.ClassifyRequest(items=[item_pb2.Item(image=item_pb2.Image())])
    assert paths(image) == []
    by_version = classifier_pb.LoadModelRequest(model={"model": "m", "version": 0})
    assert paths(by_version) == ["model.version"]
    by_alias = classifier_pb.LoadModelRequest(model={"model": "m", "alias": "no spaces"})
    assert paths(by_alias) == ["model.alias"]


def test_a_type_inside_itself_is_checked_at_every_depth() -> None:
    node = message_classes(
        Node=[field("text", STRING, max_len=3), repeated(field("below", MESSAGE, "Node"))]
    )["Node"]
    leaf = node(text="four")
    assert paths(node(text="abc", below=[node(), node(below=[leaf])])) == ["below[1].below[0].text"]


@pytest.mark.parametrize("first", ["Left", "Right"])
def test_types_inside_each_other_are_checked_from_either_end(first: str) -> None:
    classes = message_classes(
        Left=[field("text", STRING, max_len=3), field("right", MESSAGE, "Right")],
        Right=[field("number", INT32, max=9.0), field("left", MESSAGE, "Left")],
    )
    left, right = classes["Left"], classes["Right"]
    bounds = Bounds()
    bounds.check(classes[first]())
    with pytest.raises(InvalidRequest) as found:
        bounds.check(left(right=right(left=left(right=right(number=10)))))
    assert [v.field for v in found.value.violations] == ["right.left.right.number"]
    with pytest.raises(InvalidRequest) as found:
        bounds.check(right(left=left(right=right(left=left(text="four")))))
    assert [v.field for v in found.value.violations] == ["left.right.left.text"]


def test_violations_are_capped() -> None:
    entry = classifier_pb.BidiItem(id="i" * 129)
    two_each = classifier_pb.ClassifyBidiRequest(items=[entry] * 1000, priority=10)
    assert len(violations(two_each)) == MAX_VIOLATIONS == 32
    wide = map_class(field("value", INT32), max=1.0)
    assert len(violations(wide(m={str(n): 2 for n in range(500)}))) == MAX_VIOLATIONS


def test_the_message_names_the_field_and_what_is_allowed() -> None:
    with pytest.raises(InvalidRequest, match="priority.*10.*at most 9") as found:
        Bounds().check(request(priority=10))
    (violation,) = found.value.violations
    assert violation.field == "priority"
    assert "9" in violation.description


def test_a_bad_value_of_any_size_makes_a_short_message() -> None:
    """Neither a huge value nor a huge key of a map is sent back, or logged."""
    wide = map_class(field("value", INT32), max=1.0)
    for message in (wide(m={"k" * 100_000: 2}), request("x" * 1_000_001)):
        with pytest.raises(InvalidRequest) as found:
            Bounds().check(message)
        assert len(str(found.value)) < 1000
        assert sum(len(v.field) + len(v.description) for v in found.value.violations) < 1000


REQUESTS = [
    method.input_type._concrete_class
    for service in (
        classifier_pb.DESCRIPTOR.services_by_name["ClassifierService"],
        generator_pb.DESCRIPTOR.services_by_name["GeneratorService"],
        registry_pb.DESCRIPTOR.services_by_name["RegistryService"],
    )
    for method in service.methods
]
MAX_DEPTH = 4
# Long enough to reach most limits exactly, short enough to build.
LONGEST = 600


def numbers(one: FieldDescriptor, rules: bounds_pb2.Bounds) -> st.SearchStrategy[Any]:
    """Numbers that the rules allow, the bounds themselves among them."""
    low = rules.min if rules.HasField("min") else None
    high = rules.max if rules.HasField("max") else None
    if one.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        width = 32 if one.cpp_type == FieldDescriptor.CPPTYPE_FLOAT else 64
        bounded = rules.HasField("greater_than")
        return st.floats(
            rules.greater_than if bounded else low,
            high,
            exclude_min=bounded,
            allow_nan=False,
            width=width,
        )
    signed = one.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
    floor = -(2**31) if signed else 0
    least = max(
        floor if low is None else int(low),
        int(rules.greater_than) + 1 if (rules.HasField("greater_than")) else floor,
    )
    return st.integers(least, int(high) if high is not None else 2**31 - 1)


def texts(one: FieldDescriptor, rules: bounds_pb2.Bounds) -> st.SearchStrategy[Any]:
    """Strings and bytes that the rules allow, often of exactly the greatest length."""
    if rules.HasField("pattern"):
        return st.from_regex(f"(?:{rules.pattern})", fullmatch=True, alphabet=string.printable)
    least = max(rules.min_len, 1 if rules.required else 0)
    most = min(rules.max_len, LONGEST) if rules.HasField("max_len") else least + 8
    sizes = st.sampled_from(sorted({least, min(least + 3, most), most}))
    if one.type == BYTES:
        return sizes.map(bytes)
    return sizes.flatmap(
        lambda size: st.sampled_from(["a", "é", "\U0001f600"]).map(lambda c: c * size)
    )


def values(one: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    """Values of one element of a field."""
    rules = one.GetOptions().Extensions[bounds_pb2.field]
    if one.type == FieldDescriptor.TYPE_MESSAGE:
        assert one.message_type is not None
        if one.message_type.full_name == "google.protobuf.Duration":
            least = rules.min or 1.0
            most = rules.max if rules.HasField("max") else least
            return st.sampled_from([math.ceil(least), int(most)]).map(lambda s: Duration(seconds=s))
        return messages(one.message_type, depth - 1)
    if one.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if one.type == FieldDescriptor.TYPE_ENUM:
        assert one.enum_type is not None
        return st.sampled_from([value.number for value in one.enum_type.values[-2:]])
    if one.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        return texts(one, rules)
    chosen = numbers(one, rules)
    return chosen.filter(bool) if rules.required else chosen


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = MAX_DEPTH) -> Message:
    """A message within the bounds of its contract."""
    made: Message = descriptor._concrete_class()
    if descriptor.full_name.startswith("google."):
        return made
    for one in descriptor.fields:
        rules = one.GetOptions().Extensions[bounds_pb2.field]
        wanted = rules.required or rules.min_items
        if not wanted and (depth <= 0 or draw(st.integers(0, 2)) == 0):
            continue
        if one.message_type is not None and one.message_type.GetOptions().map_entry:
            inner = one.message_type.fields_by_name["value"]
            for key in range(draw(st.integers(rules.min_items, 2))):
                name = key if one.message_type.fields_by_name["key"].type != STRING else str(key)
                getattr(made, one.name)[name] = draw(
                    numbers(inner, rules) if inner.type != STRING else st.just("v")
                )
        elif one.is_repeated:
            least = max(rules.min_items, 1 if rules.required else 0)
            for _ in range(draw(st.integers(least, max(least, 2)))):
                value = draw(values(one, depth))
                target = getattr(made, one.name)
                target.add().CopyFrom(value) if one.message_type else target.append(value)
        elif one.message_type is not None:
            getattr(made, one.name).CopyFrom(draw(values(one, depth)))
            getattr(made, one.name).SetInParent()
        else:
            setattr(made, one.name, draw(values(one, depth)))
    return made


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_message_built_within_the_bounds_passes(data: st.DataObject) -> None:
    cls = data.draw(st.sampled_from(REQUESTS))
    message = data.draw(messages(cls.DESCRIPTOR))
    assert violations(message) == []


def bounded_fields() -> list[tuple[Descriptor, FieldDescriptor]]:
    """Every field of the contract that has a rule, once."""
    seen: dict[str, Descriptor] = {}
    queue = [cls.DESCRIPTOR for cls in REQUESTS]
    while queue:
        descriptor = queue.pop()
        if descriptor.full_name in seen or descriptor.full_name.startswith("google."):
            continue
        seen[descriptor.full_name] = descriptor
        queue += [one.message_type for one in descriptor.fields if one.message_type is not None]
    return [
        (descriptor, one)
        for descriptor in seen.values()
        for one in descriptor.fields
        if one.GetOptions().HasExtension(bounds_pb2.field)
    ]


def broken(one: FieldDescriptor, rules: bounds_pb2.Bounds) -> Any:
    """A value or a list just outside a rule of the field; None where that is too large to build."""
    if rules.HasField("max_items") and rules.max_items < 5000:
        return [None] * (rules.max_items + 1)
    if rules.HasField("pattern"):
        return " not this\n"
    if rules.HasField("max_len") and rules.max_len <= 2_000_000:
        size = rules.max_len + 1
        return b"x" * size if one.type == BYTES else "x" * size
    return rules.max + 1 if rules.HasField("max") and rules.max < 2**31 else None


@pytest.mark.parametrize(
    ("descriptor", "one"), bounded_fields(), ids=lambda part: part.full_name.split(".", 3)[-1]
)
def test_every_bounded_field_of_the_contract_refuses_what_is_outside(
    descriptor: Descriptor, one: FieldDescriptor
) -> None:
    rules = one.GetOptions().Extensions[bounds_pb2.field]
    made = descriptor._concrete_class()
    value = broken(one, rules)
    if isinstance(value, list):
        fill(made, one, len(value))
    elif one.message_type is not None and value is not None:
        getattr(made, one.name).CopyFrom(Duration(seconds=int(value)))
    elif value is not None:
        whole = isinstance(value, float) and one.cpp_type != FieldDescriptor.CPPTYPE_FLOAT
        value = int(value) if whole else value
        setattr(made, one.name, [value] if one.is_repeated else value)
    elif not (rules.required or rules.min_items):
        assert bounds_in_words(rules), f"{one.full_name} has an empty rule"
        return
    assert any(path.startswith(one.name) for path in paths(made)), one.full_name


def fill(made: Any, one: FieldDescriptor, count: int) -> None:
    """Give a repeated field or a map `count` elements, whatever they are."""
    target = getattr(made, one.name)
    if one.message_type is not None and one.message_type.GetOptions().map_entry:
        text = one.message_type.fields_by_name["key"].type == STRING
        number = one.message_type.fields_by_name["value"].type != STRING
        for key in range(count):
            target[str(key) if text else key] = 1 if number else "v"
    elif one.message_type is not None:
        for _ in range(count):
            target.add()
    else:
        target.extend(["x"] * count if one.type == STRING else [1] * count)


def bounds_in_words(rules: bounds_pb2.Bounds) -> str:
    """The rules that are set."""
    return ", ".join(rule.name for rule, _ in rules.ListFields())


def test_what_has_no_bounds_costs_nothing() -> None:
    """A type without rules at any depth is not looked at: this one could not be."""
    plain = message_classes(
        Plain=[repeated(field("f", INT32)), field("inner", MESSAGE, "Inner")],
        Inner=[field("text", STRING)],
    )["Plain"]
    Bounds().check(SimpleNamespace(DESCRIPTOR=plain.DESCRIPTOR))  # type: ignore[arg-type]


# Members of a oneof: one look says which is there.

INNER = [field("text", STRING, max_len=3), repeated(field("below", MESSAGE, "M"))]


def test_of_a_oneof_only_the_member_that_is_there_is_checked() -> None:
    cls = choices(
        [
            field("text", STRING, max_len=3),
            field("number", INT32, max=9.0),
            field("data", BYTES, min_len=2),
            field("inner", MESSAGE, "Inner"),
            field("free", STRING),
        ],
        Inner=[field("text", STRING, max_len=3)],
    )["M"]
    for taken in (
        {},
        {"text": "abc"},
        {"number": 9},
        {"data": b"ab"},
        {"inner": {"text": "abc"}},
        {"inner": {}},
        {"free": "x" * 100},
    ):
        assert violations(cls(**taken)) == [], taken
    for refused, path in (
        ({"text": "four"}, "text"),
        ({"number": 10}, "number"),
        ({"data": b"a"}, "data"),
        ({"inner": {"text": "four"}}, "inner.text"),
    ):
        assert paths(cls(**refused)) == [path]
    message = cls(text="four")
    message.number = 3
    assert paths(message) == [], "the last that was set is the one that is there"


def test_a_member_that_is_there_is_a_value_though_it_is_the_default() -> None:
    cls = choices([field("number", INT32, min=1.0), field("text", STRING, min_len=1)])["M"]
    assert paths(cls(number=0)) == ["number"]
    assert paths(cls(text="")) == ["text"]
    assert paths(cls()) == []


def test_a_oneof_of_one_member_is_a_oneof() -> None:
    cls = choices([field("number", INT32, min=1.0)])["M"]
    assert [paths(cls(**given)) for given in ({}, {"number": 0}, {"number": 1})] == [
        [],
        ["number"],
        [],
    ]


def test_a_required_member_is_the_one_that_must_be_there() -> None:
    cls = choices([field("must", INT32, required=True, max=5.0), field("other", INT32, max=5.0)])[
        "M"
    ]
    assert paths(cls()) == ["must"]
    assert paths(cls(must=0)) == [], "present is enough"
    assert paths(cls(must=6)) == ["must"]
    assert paths(cls(other=1)) == ["must"]
    assert paths(cls(other=6)) == ["must", "other"]
    bare = choices([field("must", INT32, required=True), field("other", INT32)])["M"]
    assert (paths(bare(other=1)), paths(bare(must=0))) == (["must"], [])


def test_each_oneof_is_looked_at_and_what_stands_beside_them() -> None:
    cls = choices(
        [field("a", INT32, max=5.0), field("b", INT32, max=5.0)],
        [field("c", INT32, max=5.0), field("d", STRING)],
        others=[
            optional(field("maybe", INT32, min=1.0)),
            field("plain", INT32, max=5.0),
            repeated(field("many", INT32, max=5.0)),
        ],
    )["M"]
    assert sorted(paths(cls(b=6, c=6, maybe=0, plain=6, many=[5, 6]))) == [
        "b",
        "c",
        "many[1]",
        "maybe",
        "plain",
    ]
    assert paths(cls(a=5, d="x", maybe=1, plain=5, many=[5])) == []


def test_a_type_inside_itself_by_way_of_a_oneof() -> None:
    cls = choices([field("inner", MESSAGE, "Inner"), field("number", INT32, max=9.0)], Inner=INNER)
    message = cls["M"]()
    deep = message.inner.below.add()
    deep.inner.below.add().number = 9
    deep.inner.below.add().number = 10
    deep.inner.text = "four"
    assert paths(message) == ["inner.below[0].inner.text", "inner.below[0].inner.below[1].number"]


def test_a_oneof_without_bounds_costs_nothing() -> None:
    cls = choices([field("a", INT32), field("b", MESSAGE, "Inner")], Inner=[field("t", STRING)])
    Bounds().check(SimpleNamespace(DESCRIPTOR=cls["M"].DESCRIPTOR))  # type: ignore[arg-type]


def test_violations_in_members_are_capped_too() -> None:
    cls = choices([field("inner", MESSAGE, "Inner"), field("number", INT32, max=9.0)], Inner=INNER)
    message = cls["M"]()
    for _ in range(100):
        message.inner.below.add().number = 10
    found = paths(message)
    assert len(found) == MAX_VIOLATIONS
    assert found[-1] == "inner.below[31].number"


# Paths, in the words of a caller.


def test_a_deep_path_is_spelled_out() -> None:
    """Field names, a number for each repeated one, a key for each map, and nothing else."""
    classes = message_classes(
        A=[field("b", MESSAGE, "B")],
        B=[repeated(field("c", MESSAGE, "C"))],
        C=[field("d", MESSAGE, "D"), repeated(field("e", STRING, max_len=1))],
        D=[field("f", STRING, max_len=1, required=True)],
    )
    d, c, b = classes["D"], classes["C"], classes["B"]
    fine = c(d=d(f="x"))
    message = classes["A"](b=b(c=[fine, fine, fine, c(d=d(f="xx"), e=["x", "xx"]), c(d=d())]))
    assert paths(message) == ["b.c[3].d.f", "b.c[3].e[1]", "b.c[4].d.f"]
    (first, _, _) = violations(message)
    assert first == Violation("b.c[3].d.f", "is 2 long, at most 1 is taken")


def test_paths_of_the_contract_lead_through_its_oneofs() -> None:
    message = request("fine")
    for _ in range(2):
        message.items.add().text_pair.second = "x" * 1_000_001
    message.items.add().float_features.SetInParent()
    assert paths(message) == [
        "items[1].text_pair.second",
        "items[2].text_pair.second",
        "items[3].float_features.values",
    ]


def words_made(message: Message) -> int:
    """How often a check puts a path into words."""
    calls = 0

    def seen(frame: Any, event: str, _: Any) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code is bounds_module._words.__code__

    checks = Bounds()
    checks.check(type(message)())
    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        with suppress(InvalidRequest):
            checks.check(message)
    finally:
        sys.setprofile(before)
    return calls


def test_a_path_is_put_into_words_only_for_a_violation() -> None:
    """A message of many items is walked through without a string being made."""
    cls = message_classes(
        Outer=[repeated(field("inner", MESSAGE, "Inner"))],
        Inner=[field("text", STRING, max_len=3), repeated(field("n", INT32, max=5.0))],
    )
    outer, inner = cls["Outer"], cls["Inner"]
    good = [inner(text="abc", n=[1, 2, 3]) for _ in range(50)]
    assert words_made(outer(inner=good)) == 0
    assert words_made(outer(inner=[*good, inner(text="four", n=[6])])) == 2
    assert words_made(outer(inner=[inner(n=[6])] * 100)) == MAX_VIOLATIONS
