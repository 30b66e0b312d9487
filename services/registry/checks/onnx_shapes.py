"""ONNX's messages by field number, and its tensor types. Knows nothing of what may be in them."""

from services.registry.checks.wire import FIXED32, FIXED64, VARINT, many, numbers, one

MODEL = {
    1: one("ir_version", VARINT),
    2: one("producer_name"),
    3: one("producer_version"),
    4: one("domain"),
    5: one("model_version", VARINT),
    6: one("doc_string"),
    7: one("graph"),
    8: many("opset_import"),
    14: many("metadata_props"),
    20: many("training_info"),
    25: many("functions"),
    26: many("configuration"),
}
TRAINING = {
    1: one("initialization"),
    2: one("algorithm"),
    3: many("initialization_binding"),
    4: many("update_binding"),
}
ENTRY = {1: one("key"), 2: one("value")}
FUNCTION = {
    1: one("name"),
    4: many("input"),
    5: many("output"),
    6: many("attribute"),
    7: many("node"),
    8: one("doc_string"),
    9: many("opset_import"),
    10: one("domain"),
    11: many("attribute_proto"),
    12: many("value_info"),
    13: one("overload"),
    14: many("metadata_props"),
}
GRAPH = {
    1: many("node"),
    2: one("name"),
    5: many("initializer"),
    10: one("doc_string"),
    11: many("input"),
    12: many("output"),
    13: many("value_info"),
    14: many("quantization_annotation"),
    15: many("sparse_initializer"),
    16: many("metadata_props"),
}
NODE = {
    1: many("input"),
    2: many("output"),
    3: one("name"),
    4: one("op_type"),
    5: many("attribute"),
    6: one("doc_string"),
    7: one("domain"),
    8: one("overload"),
    9: many("metadata_props"),
    10: many("device_configurations"),
}
ATTRIBUTE = {
    1: one("name"),
    2: one("f", FIXED32),
    3: one("i", VARINT),
    4: one("s"),
    5: one("t"),
    6: one("g"),
    7: numbers("floats", FIXED32),
    8: numbers("ints"),
    9: many("strings"),
    10: many("tensors"),
    11: many("graphs"),
    13: one("doc_string"),
    14: one("tp"),
    15: many("type_protos"),
    20: one("type", VARINT),
    21: one("ref_attr_name"),
    22: one("sparse_tensor"),
    23: many("sparse_tensors"),
}
TENSOR = {
    1: numbers("dims"),
    2: one("data_type", VARINT),
    3: one("segment"),
    4: numbers("float_data", FIXED32),
    5: numbers("int32_data"),
    6: many("string_data"),
    7: numbers("int64_data"),
    8: one("name"),
    9: one("raw_data"),
    10: numbers("double_data", FIXED64),
    11: numbers("uint64_data"),
    12: one("doc_string"),
    13: many("external_data"),
    14: one("data_location", VARINT),
    16: many("metadata_props"),
}
SPARSE = {1: one("values"), 2: one("indices"), 3: numbers("dims")}
VALUE = {1: one("name"), 2: one("type"), 3: one("doc_string"), 4: many("metadata_props")}
TYPE = {
    1: one("tensor_type"),
    4: one("sequence_type"),
    5: one("map_type"),
    6: one("denotation"),
    7: one("opaque_type"),
    8: one("sparse_tensor_type"),
    9: one("optional_type"),
}
TENSOR_TYPE = {1: one("elem_type", VARINT), 2: one("shape")}
TENSOR_SHAPE = {1: many("dim")}
DIMENSION = {1: one("dim_value", VARINT), 2: one("dim_param"), 3: one("denotation")}

STRING = 8
# Bits, since some types pack several values in a byte.
BITS = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
    **dict.fromkeys((27, 28), 6),
    15: 128,
}
DATATYPES = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    STRING: "BYTES",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
    16: "BF16",
}
"""As the Open Inference Protocol names them."""
