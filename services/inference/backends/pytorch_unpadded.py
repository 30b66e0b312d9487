"""Models that take a packed batch: which can, by what attention, and whether they do it right.

A packed batch is one row. Its tokens may attend only to those of their own segment, and what the
model's head reads off the first token of each row must be read off the first of each segment:
everything else about such a model works on each token alone.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import structlog
import torch
import transformers
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from services.inference.backends import pytorch_packing
from services.inference.backends.pytorch_program import (
    Program,
    Segments,
    packed_tensors,
    tensor,
)
from services.inference.items import Array

_log = structlog.get_logger()

NAME = "gristmill_unpadded"
# Where the encoder is whose output the head reads, and whether positions count from the padding's
# id. Each was read for: learnt positions that are added to the tokens and nowhere else, attention
# of every token to every other, a head that takes the first token alone.
ENCODERS = {
    "AlbertForSequenceClassification": ("albert.encoder", False),
    "BertForSequenceClassification": ("bert.encoder", False),
    "CamembertForSequenceClassification": ("roberta.encoder", True),
    "DistilBertForSequenceClassification": ("distilbert.transformer", False),
    "ElectraForSequenceClassification": ("electra.encoder", False),
    "RobertaForSequenceClassification": ("roberta.encoder", True),
    "XLMRobertaForSequenceClassification": ("roberta.encoder", True),
}
# Of a packed batch's logits from a padded one's, by the largest: as far as rounding may move them.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
LENGTHS = (4, 1, 2)


def install(model: Any, program: Program, device: str) -> tuple[str, int | None]:
    """Make a folder's model take packed batches too: why not, if not, and how positions count.

    It must give the answers of padded batches on this device: that is tried, not believed.
    """
    name, config = type(model).__name__, model.config
    if name not in ENCODERS:
        return f"{name} is not known to run without padding", None
    if getattr(config, "is_decoder", False) or getattr(config, "chunk_size_feed_forward", 0):
        return "its configuration does not allow it", None
    if device != "cpu" and _kernel() is None:
        return "neither torch.nn.attention.varlen nor flash_attn is there", None
    if device != "cpu" and model.dtype is torch.float32:
        return "the kernels of a GPU need bfloat16 or float16", None
    path, counted = ENCODERS[name]
    counts_from = config.pad_token_id if counted else None
    before = config._attn_implementation
    _register()
    model.set_attn_implementation(NAME)
    hook = model.get_submodule(path).register_forward_hook(_first_tokens, with_kwargs=True)
    if said := _disagrees(program, device, counts_from, TOLERANCE.get(model.dtype, 0.0)):
        hook.remove()
        model.set_attn_implementation(before)
        _log.warning("batches run padded", model=name, why=said)
        return said, None
    return "", counts_from


def attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """Attention within segments, or that of a padded batch where there are none.

    Takes [1, heads, tokens, width] each, gives [1, tokens, heads, width].
    """
    if segments is None:
        found, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return found, None
    if query.is_cuda:
        return _by_kernel(query, key, value, scaling, segments), None
    parts = [one.split(segments.lengths, dim=2) for one in (query, key, value)]
    attend = torch.nn.functional.scaled_dot_product_attention
    rows = [attend(*row, scale=scaling) for row in zip(*parts, strict=True)]
    return torch.cat(rows, dim=2).transpose(1, 2).contiguous(), None


def _by_kernel(query: Any, key: Any, value: Any, scaling: float | None, segments: Segments) -> Any:
    kernel = _kernel()
    assert kernel is not None, "install() has looked"  # noqa: S101
    starts, longest = segments.starts, segments.longest
    rows = (one[0].transpose(0, 1).contiguous() for one in (query, key, value))
    return kernel(*rows, starts, starts, longest, longest, scaling)[None]


@cache
def _kernel() -> Callable[..., Any] | None:
    """What attends within segments on a GPU, from the package that has it."""
    try:
        from torch.nn.attention.varlen import varlen_attn

        return lambda *args: varlen_attn(*args[:-1], scale=args[-1])
    except ImportError:
        pass
    try:
        from flash_attn import flash_attn_varlen_func

        return lambda *args: flash_attn_varlen_func(*args[:-1], softmax_scale=args[-1])
    except ImportError:
        return None


@cache
def _register() -> None:
    transformers.AttentionInterface.register(NAME, attention)
    transformers.AttentionMaskInterface.register(NAME, sdpa_mask)


def _first_tokens(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
    """The encoder's output, with the first token of each segment as a row of its own."""
    segments: Segments | None = kwargs.get("segments")
    if segments is None:
        return None
    output.last_hidden_state = output.last_hidden_state[0].index_select(0, segments.firsts)[:, None]
    return output


def _disagrees(program: Program, device: str, counts_from: int | None, tolerance: float) -> str:
    """Why not to trust it: what it raised, or how far it was from the padded answers."""
    inputs = _example(program)
    packed = pytorch_packing.pack(inputs, counts_from)
    assert packed is not None, "made so that it can be packed"  # noqa: S101
    try:
        with torch.inference_mode():
            wanted = program({name: tensor(rows).to(device) for name, rows in inputs.items()})
            found = program.packed(*packed_tensors(packed, device))
            apart = (found["logits"] - wanted["logits"]).abs().max()
            apart = float(apart / (1 + wanted["logits"].abs().max()))
    except Exception as error:
        return f"a packed batch raises {type(error).__name__}: {error}"
    return "" if apart <= tolerance else f"its logits are {apart:.3g} off"


def _example(program: Program) -> dict[str, Array]:
    """A few rows of different lengths, with no padding token among the others."""
    fill, most = program.fill["input_ids"], min(program.bounds["input_ids"], 64)
    ids = np.resize([one for one in range(most) if one != fill], sum(LENGTHS))
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    batch = {spec.name: np.zeros(mask.shape, np.int64) for spec in program.inputs}
    batch["input_ids"][:] = fill
    batch["input_ids"][mask] = ids
    batch["attention_mask"][mask] = 1
    return batch
