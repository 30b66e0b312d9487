"""One request answered: what a unary call and each request of a stream have in common."""

from services.classifier.answers import Asked
from services.classifier.oip import answers, parameters, signature, tensors
from services.classifier.traffic import Traffic
from services.inference.loaded import Wanted
from services.inference.scoring import Choice
from services.oip.contract import pb
from services.runtime.call import Call
from services.runtime.deadline import Deadline
from services.runtime.errors import InvalidRequest

NO_LABELS = Choice()
MAX_VERSION_DIGITS = 18


class Inference:
    """Runs requests through whatever version they mean."""

    def __init__(self, traffic: Traffic, default_priority: int) -> None:
        self._traffic = traffic
        self._default_priority = default_priority

    async def answer(
        self, request: pb.ModelInferRequest, call: Call, deadline: Deadline
    ) -> pb.ModelInferResponse:
        """The response, or what refuses the request or failed one of its items."""
        asked = parameters.read(request.parameters)
        version = version_in("model_version", request.model_version)
        wanted = Wanted(request.model_name, version, metadata=call.metadata)
        with self._traffic.use(wanted) as target:
            offered = signature.of(target.runner)
            outputs = offered.wanted(request.outputs)
            items = offered.items(tensors.read(request))
            done = await target.classify(
                items,
                Asked(
                    call.identity.name,
                    asked.until(deadline),
                    asked.priority or self._default_priority,
                    NO_LABELS,
                    no_cache=asked.no_cache,
                    raw=True,
                ),
            )
            labels = target.runner.manifest.output.labels
        response = pb.ModelInferResponse(
            model_name=target.model, model_version=str(target.version), id=request.id
        )
        answers.write(response, done, outputs, labels)
        return response


def version_in(field: str, text: str) -> int:
    """The version that a text names; 0 where it names none."""
    if not text:
        return 0
    if text.isascii() and text.isdigit() and len(text) <= MAX_VERSION_DIGITS and int(text):
        return int(text)
    raise InvalidRequest.field(field, "must be a whole number above 0, or empty")
