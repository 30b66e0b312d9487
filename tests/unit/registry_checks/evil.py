"""Files that must be refused: of each kind of attack one, by the rule that it breaks."""

import gzip
import io
import json
import struct
import tarfile
from dataclasses import dataclass, field
from typing import Any

from onnx import TensorProto, helper

from tests.unit.registry_checks.corpus import (
    CHATML,
    CLASSIFIER,
    EXPORT,
    F32,
    GENERATOR,
    LLAMA,
    MANIFEST,
    PICKLES,
    SCRIPT,
    Files,
    archive,
    as_json,
    entry,
    gguf,
    gguf_text,
    nested,
    onnx_file,
    onnx_model,
    outside,
    safetensors,
    tensor,
    text_entry,
    value,
    weights,
    with_tensor,
)

U64 = (1 << 64) - 1


@dataclass(frozen=True)
class Evil:
    """Files of which one must be refused."""

    files: Files
    path: str
    rule: str
    says: str
    allow_pickle: bool = field(default=False)


def one(path: str, data: bytes, rule: str, says: str, *beside: str) -> Evil:
    """A file that must be refused, beside empty ones of these names."""
    return Evil({path: data, **dict.fromkeys(beside, bytes(64))}, path, rule, says)


def tensors(header: Any, says: str, data: bytes = bytes(8)) -> Evil:
    return one("a.safetensors", safetensors(header, data), "header", says)


def ggml(data: bytes, says: str) -> Evil:
    return one("a.gguf", data, "header", says)


def graph(data: bytes, says: str, rule: str = "header", *beside: str) -> Evil:
    return one("model.onnx", data, rule, says, *beside)


def external(made: Any, says: str = "plain name", *beside: str) -> Evil:
    return graph(onnx_file(initializers=[made]), says, "external-data", *beside)


def config(name: str, said: Any, says: str, rule: str = "remote-code") -> Evil:
    return one(name, as_json(said), rule, says)


def template(source: str, says: str) -> Evil:
    return config("tokenizer_config.json", {"chat_template": source}, says, "chat-template")


def content(path: str, data: bytes, rule: str = "pickle-refused") -> Evil:
    says = {"pickle-refused": "safetensors or ONNX", "archive-refused": "archive"}
    return one(path, data, rule, says.get(rule, "code of their own"))


def allowed(data: bytes, says: str) -> Evil:
    return Evil({"model.pt": data}, "model.pt", "archive-refused", says, allow_pickle=True)


def shaped(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        made.addfile(tarfile.TarInfo("../x"))
    return out.getvalue()


def npy(described: str) -> bytes:
    header = f"{{'descr': '{described}', 'fortran_order': False, 'shape': (1,), }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + PICKLES[4]


def renamed(data: bytes, before: bytes, after: bytes) -> bytes:
    assert before in data
    return data.replace(before, after)


def sparse() -> bytes:
    made = onnx_model()
    made.graph.sparse_initializer.add(values=outside("/etc/passwd", "v"), dims=[12])
    return bytes(made.SerializeToString())


def function(domain: str) -> bytes:
    made = onnx_model()
    made.functions.append(helper.make_function(domain, "F", [], [], [], []))
    return bytes(made.SerializeToString())


def training() -> bytes:
    made = onnx_model()
    made.training_info.add().algorithm.initializer.append(outside("../x"))
    return bytes(made.SerializeToString())


def merged() -> bytes:
    """Two halves of a graph, which a parser joins: one marks a tensor, the other says where."""
    data = onnx_file()
    return data + b"\x3a\x02\x12\x00"


def linked() -> bytes:
    data = archive(SCRIPT)
    at = data.index(b"PK\1\2")
    return data[: at + 38] + struct.pack("<I", 0o120777 << 16) + data[at + 42 :]


SAFETENSORS = {
    "a header longer than the file": one(
        "a.safetensors", struct.pack("<Q", 1000) + b"{}", "header", "claims a header"
    ),
    "a header of 2^64": one(
        "a.safetensors", struct.pack("<Q", U64) + b"{}", "header", "claims a header"
    ),
    "no header": one("a.safetensors", b"\x02\0\0", "header", "ends inside"),
    "no JSON": tensors(b"{]", "not JSON"),
    "no object": tensors([], "JSON object"),
    "not UTF-8": tensors(b'{"\xff":{}}', "not JSON"),
    "a key twice": tensors(b'{"a":1,"a":2}', "twice"),
    "deep": tensors(b'{"a":' * 101 + b"1" + b"}" * 101, "nested"),
    "a dtype": tensors(shaped([2], [0, 8], "F33"), "not known"),
    "a dtype of another type": tensors(shaped([2], [0, 8], ["F32"]), "not known"),
    "a negative dimension": tensors(shaped([-2], [0, 8]), "non-negative"),
    "a dimension that is true": tensors(shaped([True, 2], [0, 8]), "non-negative"),
    "a fraction": tensors(shaped([2.0], [0, 8]), "non-negative"),
    "a product that overflows": tensors(shaped([1 << 62, 4], [0, 8]), "too large"),
    "zero after an overflow": tensors(shaped([1 << 62, 4, 0], [0, 0]), "too large", b""),
    "many dimensions": tensors(shaped([1] * 33, [0, 4]), "non-negative", bytes(4)),
    "a size that is none": tensors(shaped([3], [0, 8]), "takes 12 bytes, it has 8"),
    "more data than its shape takes": tensors(shaped([1], [0, 8]), "takes 4 bytes, it has 8"),
    "backwards": tensors(shaped([2], [8, 0]), "begin, end"),
    "behind the end": tensors(shaped([4], [0, 16]), "the file has 8"),
    "an overlap": tensors({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, "overlaps", bytes(12)),
    "a hole": tensors({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, "hole", bytes(20)),
    "a tail": tensors(None, "the file has 9", bytes(9)),
    "metadata": tensors({"a": F32, "__metadata__": {"a": 1}}, "text to text"),
    "another key": tensors({"a": {**F32, "x": 1}}, "needs dtype"),
}
GGUF = {
    "magic": ggml(b"GGML" + gguf()[4:], "does not begin"),
    "empty": ggml(b"", "does not begin"),
    "version 1": ggml(gguf(version=1), "version 1"),
    "the other byte order": ggml(gguf(version=3 << 24), "version"),
    "many tensors": ggml(gguf(counts=(1 << 40, 0)), "too many"),
    "many entries": ggml(gguf(counts=(0, U64)), "too many"),
    "a key of 2^64": ggml(gguf((struct.pack("<Q", U64),)), "a name has"),
    "a text behind the end": ggml(
        gguf((entry("a", 8, struct.pack("<Q", 1 << 40)),)), "ends inside"
    ),
    "an array behind the end": ggml(
        gguf((entry("a", 9, struct.pack("<IQ", 4, 1 << 62)),)), "ends inside"
    ),
    "an array of too many texts": ggml(
        gguf((entry("a", 9, struct.pack("<IQ", 8, 1 << 62)),)), "texts"
    ),
    "nested arrays": ggml(gguf((entry("a", 9, struct.pack("<IQ", 9, 1) * 9),)), "nested"),
    "a value type": ggml(gguf((entry("a", 99, bytes(8)),)), "value type 99"),
    "a key twice": ggml(gguf((LLAMA[0], LLAMA[0])), "twice"),
    "alignment 0": ggml(gguf((entry("general.alignment", 4, bytes(4)),)), "power of two"),
    "alignment 48": ggml(gguf((entry("general.alignment", 4, b"0\0\0\0"),)), "power of two"),
    "alignment as text": ggml(gguf((text_entry("general.alignment", "32"),)), "power of two"),
    "five dimensions": ggml(gguf(tensors=[tensor("a", (32, 1, 1, 1, 1))]), "dimensions"),
    "a tensor type": ggml(gguf(tensors=[tensor("a", (32,), 99)]), "ggml type 99"),
    "half a block": ggml(gguf(tensors=[tensor("a", (33,), 2)]), "whole number of blocks"),
    "a shape that overflows": ggml(gguf(tensors=[tensor("a", (1 << 32, 1 << 32))]), "too large"),
    "an empty shape": ggml(gguf(tensors=[tensor("a", (32, 0))]), "empty"),
    "an offset of 2^64": ggml(gguf(tensors=[tensor("a", (32,), 0, U64 - 31)]), "end of the file"),
    "an offset that is not aligned": ggml(gguf(tensors=[tensor("a", (2,), 0, 8)]), "not aligned"),
    "behind the end": ggml(gguf(data=bytes(256 + 17)), "end of the file"),
    "an overlap": ggml(gguf(tensors=[tensor("a", (32,)), tensor("b", (32,), 0, 96)]), "overlaps"),
    "a tensor twice": ggml(gguf(tensors=[tensor("a", (8,)), tensor("a", (8,), 0, 32)]), "twice"),
    "a long tensor name": ggml(gguf(tensors=[tensor("a" * 300, (8,))]), "a name has"),
    "a template": one(
        "a.gguf",
        gguf((*LLAMA, text_entry("tokenizer.chat_template", "{{ ''.__class__ }}"))),
        "chat-template",
        "__class__",
    ),
    "a long template": one(
        "a.gguf",
        gguf((*LLAMA, text_entry("tokenizer.chat_template", CHATML + " " * 200_000))),
        "chat-template",
        "64 KiB",
    ),
    "a text without its end": ggml(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_text("a"), "ends"),
}
ONNX = {
    "no ONNX": graph(b"hello, I am a model", "no ONNX model"),
    "empty": graph(b"", "no graph"),
    "HTML": graph(b"<!doctype html><html></html>", "is"),
    "an unknown field": graph(onnx_file() + b"\xba\x1f\x01a", "not known"),
    "a field written otherwise": graph(onnx_file() + b"\x38\x01", "not known"),
    "a graph in two halves": graph(merged(), "graph is there twice"),
    "a field behind the end": graph(onnx_file()[:-1], "behind the end"),
    "a domain": graph(
        onnx_file(nodes=[helper.make_node("PyOp", [], ["logits"], domain="pyopmulti_1")]),
        "only operators of",
        "onnx-domain",
    ),
    "a function": graph(function("mine"), "only operators of", "onnx-domain"),
    "a context for a device": graph(
        onnx_file(nodes=[helper.make_node("EPContext", [], ["logits"], domain="com.microsoft")]),
        "plain model",
        "onnx-domain",
    ),
    "two outputs of a name": graph(onnx_file(outputs=[value("y"), value("y")]), "twice"),
    "two inputs of a name": graph(onnx_file(inputs=[value("y"), value("y")]), "twice"),
    "little raw data": graph(onnx_file(initializers=[weights(raw_data=bytes(47))]), "takes 48"),
    "a negative dimension": graph(onnx_file(initializers=[weights(dims=[-4, -3])]), "negative"),
    "dimensions that overflow": graph(
        onnx_file(initializers=[weights(dims=[1 << 62, 1 << 62])]), "too large"
    ),
    "no data": graph(
        onnx_file(initializers=[TensorProto(name="w", data_type=1, dims=[1 << 40])]), "too few"
    ),
    "a data type": graph(onnx_file(initializers=[weights(data_type=77)]), "data type 77"),
    "raw texts": graph(onnx_file(initializers=[weights(data_type=8)]), "texts"),
    "graphs without end": graph(
        onnx_file(nodes=[nested(helper.make_attribute("value_int", 1), 18, arms=1)]), "nested"
    ),
    "an absolute location": external(outside("/etc/passwd")),
    "a location above": external(outside("../../etc/passwd")),
    "a location below": external(outside("sub/../../x"), "plain name", "sub/x"),
    "no location": external(outside("")),
    "a dot": external(outside(".")),
    "NUL in a location": external(outside("data\0.bin")),
    "a newline in a location": external(outside("data\n")),
    "the process's memory": external(outside("*/_ORT_MEM_ADDR_/*", offset="1234", length="48")),
    "the model itself": external(outside("model.onnx")),
    "what is not listed": external(outside("weights.data"), "artifact in the model's own folder"),
    "a folder below": external(outside("sub/w.data"), "plain name", "sub/w.data"),
    "another folder's": external(outside("w.data"), "plain name", "sub/w.data"),
    "behind the end": external(outside("w.data", offset="32"), "which has 64", "w.data"),
    "a negative offset": external(outside("w.data", offset="-1"), "no offset", "w.data"),
    "an offset of many digits": external(outside("w.data", offset="9" * 30), "no offset", "w.data"),
    "another length": external(outside("w.data", length="64"), "claims 64", "w.data"),
    "an unknown key": external(outside("w.data", __class__="x"), "takes", "w.data"),
    "data inside and outside": external(
        weights(data_location=1, external_data=outside("w.data").external_data[:]),
        "both",
        "w.data",
    ),
    "external data in disguise": external(
        weights(external_data=outside("../x").external_data[:]), "without being marked"
    ),
    "an attribute's tensor": graph(
        onnx_file(nodes=[nested(with_tensor(outside("../x")), 0)]), "plain name", "external-data"
    ),
    "a tensor in a graph in a graph": graph(
        onnx_file(nodes=[nested(with_tensor(outside("../x")), 3)]), "plain name", "external-data"
    ),
    "a sparse tensor": graph(sparse(), "plain name", "external-data"),
    "a tensor for training": graph(training(), "plain name", "external-data"),
}
CONTENTS = {
    **{f"protocol {n}": content("weights.dat", data) for n, data in PICKLES.items()},
    "a pickle that breaks off": content("weights.dat", PICKLES[2][:-1] + bytes(64)),
    "a pickle named safetensors": content("a.safetensors", PICKLES[4]),
    "a pickle named GGUF": content("a.gguf", PICKLES[2]),
    "a pickle named ONNX": content("model.onnx", PICKLES[3]),
    "a pickle without a head": content("weights.dat", b"cposix\nsystem\n(S'exit'\ntR."),
    "a checkpoint": content("pytorch_model.bin", archive({"archive/data.pkl": PICKLES[2]})),
    "a checkpoint of another name": content("weights", archive({"archive/data.pkl": PICKLES[2]})),
    "a checkpoint behind something": content("w.txt", b"hello" + archive({"a/data.pkl": b""})),
    "TorchScript": content("model.pt", archive(SCRIPT)),
    "torch.export": content("model.pt2", archive(EXPORT)),
    "torch.export of another name": content("model.data", archive(EXPORT)),
    "an ending": content("a.pkl", b""),
    "an ending in capitals": content("sub/A.JOBLIB", b"x"),
    "an array of objects": content("a.npy", npy("|O")),
    "arrays": content("a.npz", archive({"a.npy": npy("<f4")})),
    "zip": content("a.data", archive({"a.txt": b""}), "archive-refused"),
    "an empty zip": content("a.data", archive({}), "archive-refused"),
    "zip by its name": content("a.zip", b"", "archive-refused"),
    "gzip": content("a.data", gzip.compress(b"x"), "archive-refused"),
    "tar": content("a.data", tar(), "archive-refused"),
    "7z": content("a.data", b"7z\xbc\xaf\x27\x1c" + bytes(32), "archive-refused"),
    "a mar": content("a.mar", b"", "archive-refused"),
    "a handler": content("handler.py", b"", "remote-code"),
    "a library": content("op.data", b"\x7fELF" + bytes(60), "remote-code"),
    "a way out": allowed(archive({**SCRIPT, "../../x": b""}), "plain names"),
    "an absolute member": allowed(archive({**SCRIPT, "/etc/x": b""}), "plain names"),
    "a member with NUL": allowed(
        renamed(archive({**SCRIPT, "m/name": b""}), b"m/name", b"m/\0ame"), "plain names"
    ),
    "a member that is a link": allowed(linked(), "link"),
    "a bomb": allowed(archive({**SCRIPT, "m/zero": bytes(4 << 20)}, packed=True), "unpack to"),
    "two names for a member": allowed(
        archive(SCRIPT).replace(b"m/version", b"m/Version", 1), "another name"
    ),
    "a long list of members": allowed(
        archive({**SCRIPT, **{str(n): b"" for n in range(70_000)}}), "members"
    ),
}
CONFIGS = {
    "auto_map": config("config.json", {"auto_map": {"AutoConfig": "a.B"}}, "auto_map"),
    "auto_map below": config("config.json", {"a": [{"auto_map": {}}]}, "auto_map"),
    "auto_map of a tokenizer": config("tokenizer_config.json", {"auto_map": {}}, "auto_map"),
    "auto_map of a processor": config("preprocessor_config.json", {"auto_map": {}}, "auto_map"),
    "auto_map of generation": config("generation_config.json", {"auto_map": {}}, "auto_map"),
    "auto_map of anything": config("sub/any.json", {"Auto-Map": {}}, "Auto-Map"),
    "trust": config("config.json", {"trust_remote_code": True}, "trust_remote_code"),
    "a pipeline": config("config.json", {"custom_pipelines": {"x": {}}}, "custom_pipelines"),
    "deep": one("config.json", b"[" * 101 + b"]" * 101, "json", "nested"),
    "very deep": one("config.json", b"[" * 2_000_000, "json", "nested"),
    "quotes without end": one("config.json", b'"' + b'\\"' * 2_000_000, "json", "not JSON"),
    "many values": one("config.json", b"[" + b"0," * 2_000_001 + b"0]", "json", "values"),
    "no JSON": one("config.json", b"{'a': 1}", "json", "not JSON"),
    "a long number": one("config.json", b"9" * 5000, "json", "not JSON"),
    "a deep tokenizer": one("tokenizer.json", b'{"a":' * 200 + b"1" + b"}" * 200, "json", "nested"),
    "no tokenizer": one("tokenizer.json", b"[]", "json", "object"),
    "half a tokenizer": one("tokenizer.json", b'{"a": [', "json", "brackets"),
    "a large one": one("config.json", b" " * ((64 << 20) + 1), "json", "64 MiB"),
    "a shard elsewhere": config(
        "model.safetensors.index.json", {"weight_map": {"a": "../x"}}, "shard", "file-missing"
    ),
    "a shard that is missing": config(
        "model.safetensors.index.json",
        {"weight_map": {"a": "x.safetensors"}},
        "shard",
        "file-missing",
    ),
    "no weight map": config("model.safetensors.index.json", {}, "weight_map", "header"),
}
SOURCES = {
    "a class": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "__"),
    "a class by item": ("{{ ''['__cla' ~ 'ss__'] }}", "__class__"),
    "a class by filter": ("{{ [''] | map(attribute='__class__') | list }}", "__class__"),
    "a class that is not reached": ("{% if false %}{{ x.__globals__ }}{% endif %}", "__globals__"),
    "globals of a helper": ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "__"),
    "the insides of a frame": ("{{ messages.__iter__ }}{{ raise_exception.__code__ }}", "__code__"),
    "attr": ("{{ '' | attr('x') }}", "attr"),
    "a change": ("{{ messages.append(1) }}", "append"),
    "another template": ("{% include '/etc/passwd' %}", "another template"),
    "an import": ("{% import 'os' as os %}", "another template"),
    "inheritance": ("{% extends '/etc/passwd' %}", "another template"),
    "a range": ("{% for i in range(10**9) %}{% endfor %}", "too large"),
    "a range of 2^70": ("{{ range(2**70) | length }}", "too large"),
    "nested loops": (
        "{% for i in range(9999) %}{% for j in range(9999) %}{% for k in range(9999) %}"
        "{% endfor %}{% endfor %}{% endfor %}",
        "takes too",
    ),
    "nested loops over lists": (
        "{% set a = range(1999) | list %}{% for i in a %}{% for j in a %}{% for k in a %}"
        "{% endfor %}{% endfor %}{% endfor %}",
        "takes too",
    ),
    "a long text": ("{{ 'a' * 10**9 }}", "too large"),
    "a long text the other way": ("{{ 10**9 * 'a' }}", "too large"),
    "a long list": ("{{ ([0] * 10**9) | length }}", "too large"),
    "a large number": ("{{ 2 ** (10 ** 9) }}", "too large"),
    "a number that grows": (
        "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}"
        "{% endfor %}",
        "too large",
    ),
    "a text that doubles": (
        "{% set ns = namespace(n='aa') %}{% for i in range(99) %}{% set ns.n = ns.n ~ ns.n %}"
        "{% endfor %}",
        "too large",
    ),
    "a block that doubles": (
        "{% set ns = namespace(n='aa') %}{% for i in range(99) %}{% set t %}{{ ns.n }}{{ ns.n }}"
        "{% endset %}{% set ns.n = t %}{% endfor %}",
        "too large",
    ),
    "a list that holds itself twice": (
        "{% set ns = namespace(n=[1]) %}{% for i in range(99) %}{% set ns.n = [ns.n, ns.n] %}"
        "{% endfor %}{{ ns.n == ns.n }}",
        "too large",
    ),
    "a dict that holds itself twice": (
        "{% set ns = namespace(n=1) %}{% for i in range(99) %}{% set ns.n = dict(a=ns.n, b=ns.n) %}"
        "{% endfor %}",
        "too large",
    ),
    "a macro without end": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "without end"),
    "a macro that forks": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) ~ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "takes too",
    ),
    "a loop into itself": (
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "without end",
    ),
    "text again and again": (
        "{% for i in range(9999) %}" + "x" * 999 + "{% endfor %}",
        "writes more",
    ),
    "text in a macro": (
        "{% macro m() %}{% for i in range(9999) %}" + "x" * 999 + "{% endfor %}{% endmacro %}"
        "{% set t = m() %}",
        "writes more",
    ),
    "a view in a text": (
        "{% set ns = namespace(d={}) %}{% for i in range(99) %}"
        "{% set ns.d = dict(a=ns.d.values(), b=ns.d.items()) %}{% endfor %}",
        "the chat template",
    ),
    "views written out": (
        "{% set d = dict(a='x' * 9999) %}{% set t %}{% for i in range(9999) %}{{ d.values() }}"
        "{% endfor %}{% endset %}",
        "writes more",
    ),
    "a width": ("{{ '%999999999d' % 1 }}", "width"),
    "a width given": ("{{ '%*d' % (999999999, 1) }}", "width"),
    "a format": ("{{ '{:999999999}'.format(1) }}", "format"),
    "a filter of another size": ("{{ 'a' | center(999999999) }}", "center"),
    "a method of another size": ("{{ 'a'.ljust(999999999) }}", "ljust"),
    "bytes of a number": ("{{ (1).to_bytes(999999999) }}", "to_bytes"),
    "a replacement": ("{{ ('a' * 9999) | replace('a', 'b' * 9999) }}", "too large"),
    "a replacement by a method": ("{{ ('a' * 9999).replace('', 'b' * 9999) }}", "too large"),
    "a separator": ("{{ range(9999) | join('b' * 9999) }}", "too large"),
    "a separator by a method": ("{{ ('b' * 9999).join('a' * 9999) }}", "too large"),
    "an indent": ("{{ ('a\n' * 999) | indent(999999) }}", "too large"),
    "an indent of JSON": ("{{ [1] | tojson(indent=999999999) }}", "indent"),
    "no template": ("{% if %}", "cannot be compiled"),
    "half a template": ("{% for m in messages %}", "cannot be compiled"),
    "brackets": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "too deeply"),
    "ifs": ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "too deeply"),
    "loops": ("{% for a in b %}" * 100 + "{% endfor %}" * 100, "too"),
    "a long sum": ("{{ " + "+".join("1" * 9999) + " }}", "too deeply"),
    "a very long number": ("{{ " + "9" * 60_000 + " }}", "cannot write"),
    "what is not there": ("{{ foo.bar.baz }}", "cannot write"),
    "a long template": ("x" * 65_537, "64 KiB"),
}
TEMPLATES = {
    **{name: template(source, says) for name, (source, says) in SOURCES.items()},
    "one of several": config(
        "tokenizer_config.json",
        {
            "chat_template": [
                {"name": "default", "template": CHATML},
                {"name": "t", "template": "{%"},
            ]
        },
        "cannot be compiled",
        "chat-template",
    ),
    "one by name": config(
        "tokenizer_config.json",
        {"chat_template": {"default": CHATML, "t": "{{ ''.__class__ }}"}},
        "__class__",
        "chat-template",
    ),
    "a number": config("tokenizer_config.json", {"chat_template": 1}, "text", "chat-template"),
    "without a name": config(
        "tokenizer_config.json", {"chat_template": [{"template": ""}]}, "name", "chat-template"
    ),
    "a file": one("chat_template.jinja", b"{{ ''.__class__ }}", "chat-template", "__class__"),
    "a file of another name": one("x/tool.jinja", b"{{ ''.__class__ }}", "chat-template", "__cl"),
    "a large file": one("chat_template.jinja", b"x" * 65_537, "chat-template", "0.0625 MiB"),
    "not UTF-8": one("chat_template.jinja", b"\xff", "chat-template", "UTF-8"),
}
MANIFESTS = {
    name: Evil({"model.yaml": text, "model.onnx": onnx_file()}, "model.yaml", rule, says)
    for name, text, rule, says in (
        ("no YAML", b"a: [", "manifest", "model.yaml: "),
        ("not UTF-8", b"\xff\xfe", "manifest", "UTF-8"),
        ("aliases", b"&a [*a]", "manifest", "aliases"),
        ("deep", MANIFEST + b"notes: " + b"[" * 500 + b"]" * 500, "manifest", "nested"),
        ("code", MANIFEST + b"notes: !!python/object/apply:os.mkdir [x]\n", "manifest", "python"),
        ("no date", MANIFEST + b"notes: 2001-99-99\n", "manifest", "model.yaml: "),
        ("large", MANIFEST + b"#" * (1 << 20), "manifest", "1 MiB"),
        ("a path", MANIFEST.replace(b"model.onnx", b"../model.onnx"), "manifest", "files.model"),
        ("missing", MANIFEST.replace(b"model.onnx", b"other.onnx"), "file-missing", "other.onnx"),
        (
            "a model by another name",
            MANIFEST.replace(b"model.onnx", b"model.yaml"),
            "manifest",
            "*.onnx",
        ),
    )
}
NEEDED = {
    "nothing": Evil({"notes.txt": b""}, "model.yaml", "manifest-needed", "no ONNX"),
    "two models": Evil(
        {"a.onnx": onnx_file(), "b.onnx": onnx_file()},
        "model.yaml",
        "manifest-needed",
        "files.model",
    ),
    "no tokenizer": Evil(
        {"config.json": json.dumps(CLASSIFIER).encode(), "model.safetensors": safetensors()},
        "model.yaml",
        "manifest-needed",
        "add tokenizer.json",
    ),
    "no architecture": Evil(
        {"config.json": b"{}", "model.safetensors": safetensors()},
        "model.yaml",
        "manifest-needed",
        "architecture",
    ),
    "no length": Evil(
        {
            "config.json": as_json({"architectures": GENERATOR["architectures"]}),
            "model.safetensors": safetensors(),
        },
        "model.yaml",
        "manifest-needed",
        "max_context_tokens",
    ),
    "images": Evil(
        {"m.onnx": onnx_file(inputs=[value("pixels", shape=(1, 3, 224, 224))])},
        "model.yaml",
        "manifest-needed",
        "add model.yaml with input.kind: the model takes 'pixels' (FP32 [1, 3, 224, 224])",
    ),
    "a gap in the labels": Evil(
        {"m.onnx": onnx_file(), "config.json": as_json({"id2label": {"0": "a", "2": "b"}})},
        "model.yaml",
        "manifest-needed",
        "id2label",
    ),
    "TorchScript": Evil(
        {"model.pt": archive(SCRIPT)}, "model.yaml", "manifest-needed", "TorchScript", True
    ),
    "torch.export": Evil(
        {"model.pt2": archive(EXPORT)}, "model.yaml", "manifest-needed", "torch.export", True
    ),
}

EVIL: dict[str, Evil] = {
    f"{kind}: {name}": case
    for kind, cases in {
        "safetensors": SAFETENSORS,
        "GGUF": GGUF,
        "ONNX": ONNX,
        "contents": CONTENTS,
        "configs": CONFIGS,
        "templates": TEMPLATES,
        "manifests": MANIFESTS,
        "needed": NEEDED,
    }.items()
    for name, case in cases.items()
}
