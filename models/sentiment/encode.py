"""Runs encoder and finished model on sentences (development only); knows no labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from tokenizers import Tokenizer

from models.metrics import Floats
from models.sentiment.head import Tap
from models.sentiment.recipe import MAX_TOKENS

TokenIds = list[int]
BATCH_TOKENS = 512
BATCH_SIZE = 32


def tokenize(tokenizer_path: Path, texts: Sequence[str]) -> list[TokenIds]:
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def open_session(model: ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def padded_inputs(items: Sequence[TokenIds]) -> dict[str, NDArray[np.int64]]:
    shape = (len(items), max(map(len, items)))
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, item in enumerate(items):
        ids[row, : len(item)], mask[row, : len(item)] = item, 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros(shape, np.int64)}


def pooled_features(
    encoder: ModelProto,
    items: Sequence[TokenIds],
    taps: Sequence[Tap],
    on_done: Callable[[int], None],
) -> Floats:
    """[n, taps x hidden], the numpy twin of what the graph surgery adds."""
    tensors = list(dict.fromkeys(tap.tensor for tap in taps))
    session = open_session(_with_outputs(encoder, tensors))
    rows: list[Floats] = [np.empty(0)] * len(items)
    for done, batch in _batches(items):
        inputs = padded_inputs([items[i] for i in batch])
        states = dict(zip(tensors, session.run(tensors, dict(inputs)), strict=True))
        pooled = np.concatenate(
            [pool(states[t.tensor], inputs["attention_mask"], t) for t in taps], axis=1
        )
        for index, row in zip(batch, pooled, strict=True):
            rows[index] = row
        on_done(done)
    return np.stack(rows)


def pool(states: NDArray[np.float32], mask: NDArray[np.int64], tap: Tap) -> Floats:
    """[batch, sequence, hidden] -> [batch, hidden]."""
    real = mask[..., None] > 0
    if tap.pooling == "cls":
        return np.asarray(states[:, 0], np.float64)
    if tap.pooling == "max":
        return np.asarray(np.where(real, states, -np.inf).max(axis=1), np.float64)
    total = (states * real).sum(axis=1, dtype=np.float64)
    return np.asarray(total / real.sum(axis=1))


def probabilities(
    session: onnxruntime.InferenceSession, items: Sequence[TokenIds], batch_size: int
) -> Floats:
    """Answers of the finished model, in arrival order, padded to the longest of each batch."""
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    answers = [session.run(["probabilities"], dict(padded_inputs(batch)))[0] for batch in batches]
    return np.asarray(np.concatenate(answers), np.float64)


def _batches(items: Sequence[TokenIds]) -> Iterator[tuple[int, list[int]]]:
    """Indices in batches of like length, each with the count done by its end."""
    order, start = sorted(range(len(items)), key=lambda i: len(items[i])), 0
    while start < len(order):
        size = max(1, min(BATCH_SIZE, BATCH_TOKENS // len(items[order[start]])))
        batch = order[start : start + size]
        start += len(batch)
        yield start, batch


def _with_outputs(encoder: ModelProto, tensors: Sequence[str]) -> ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(encoder)
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors
    )
    return model
