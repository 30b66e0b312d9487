"""Weights of an ONNX model in int8, activations quantised as they come; knows no figure."""

from pathlib import Path

from services.runtime.errors import FailedPrecondition

# Protobuf ends at 2 GiB; from here on the weights lie in a file beside the graph.
EXTERNAL_BYTES = 2**30
INTEGER = {
    *("MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM", "QAttention"),
    *("DynamicQuantizeMatMul", "QEmbedLayerNormalization"),
}


def quantize(source: Path, target: Path, *, per_channel: bool) -> None:
    """Write the model with weights in int8, with a scale for each channel or for each tensor.

    Raises FailedPrecondition where it has no weights that could be.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # With what lies beside it.
    size = sum(file.stat().st_size for file in source.parent.glob(f"{source.name}*"))
    model = onnx.load(str(source))
    # Shapes inside the graph are inferred anew: those of an exporter may be of weights that the
    # quantiser turns around.
    del model.graph.value_info[:]
    quantize_dynamic(
        model,
        target,
        per_channel=per_channel,
        weight_type=QuantType.QInt8,
        use_external_data_format=size > EXTERNAL_BYTES,
    )
    graph = onnx.load(str(target), load_external_data=False).graph
    if not INTEGER & {node.op_type for node in graph.node}:
        raise FailedPrecondition("the model has no weights that int8 could replace")
