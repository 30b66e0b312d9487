"""What callers of the simple routes send. Knows no wire of ours."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

Text = Annotated[StrictStr, Field(max_length=1_000_000)]
Number = Annotated[float, Field(strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextsRequest(_Strict):
    """Several texts."""

    texts: list[Text] = Field(min_length=1, max_length=4096)
    model_name: StrictStr = ""


class TextRequest(_Strict):
    """One text."""

    text: Text
    request_id: StrictStr | None = Field(default=None, max_length=128)
    model_name: StrictStr = ""


class InputsRequest(_Strict):
    """Several rows of numbers."""

    inputs: list[list[Number]] = Field(min_length=1, max_length=4096)
    return_probabilities: StrictBool = False
    model_name: StrictStr = ""


class GenerateRequest(_Strict):
    """POST /generate."""

    prompt: Text
    max_tokens: StrictInt = Field(default=256, ge=1, le=2**31 - 1)
    temperature: Number = Field(default=0.7, ge=0)
    top_p: Number = Field(default=0.95, gt=0, le=1)
    top_k: StrictInt = Field(default=50, ge=0)
    stop: StrictStr | list[StrictStr] | None = None
    stream: StrictBool = False
    model_name: StrictStr = ""
