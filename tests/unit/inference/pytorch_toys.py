"""Modules small enough to be saved whole, for the tests of archives. Needs torch."""

from typing import NamedTuple

import torch


class Both(NamedTuple):
    """Two outputs with names of their own."""

    probabilities: torch.Tensor
    width: torch.Tensor


class Doubled(torch.nn.Module):
    """One input, one output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class ByName(torch.nn.Module):
    """Outputs with names."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": x.double(), "count": (x > 0).sum(dim=1)}


class Named(torch.nn.Module):
    """A named tuple; one output is as wide as its input."""

    def forward(self, x: torch.Tensor) -> Both:
        return Both(x.softmax(1), x)


class Pair(torch.nn.Module):
    """Two inputs of different types, two outputs without names."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return left + right[:, :1], right


class Fixed(torch.nn.Module):
    """Runs on one length alone."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return input_ids.reshape(-1, 7).float()


class Lookup(torch.nn.Module):
    """A table of ten rows; what is not needed has a default."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(10, 2)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        scale: float = 1.0,
    ) -> torch.Tensor:
        rows = self.table(input_ids) * attention_mask[:, :, None]
        return rows.sum(dim=1) * scale


class Keywords(torch.nn.Module):
    """Takes one by position and one by name."""

    def forward(self, x: torch.Tensor, *, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": x - y}
