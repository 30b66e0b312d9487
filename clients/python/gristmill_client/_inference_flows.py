"""What can be asked of classifier and generator in unary calls, as flows."""

from __future__ import annotations

from gristmill.classifier.v1.classifier_service_pb2 import ClassifyRequest
from gristmill.classifier.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from gristmill.generator.v1.generator_service_pb2 import GenerateRequest
from gristmill.generator.v1.generator_service_pb2_grpc import GeneratorServiceStub

from gristmill_client import _classify_messages, _generate_messages
from gristmill_client._steps import Flow, call
from gristmill_client.completion import Completion
from gristmill_client.prediction import Prediction


def classify(request: ClassifyRequest, timeout: float | None) -> Flow[list[Prediction]]:
    response = yield from call(
        "classifier", ClassifierServiceStub, lambda stub: stub.Classify, request, timeout
    )
    return _classify_messages.predictions(response)


def generate(request: GenerateRequest, timeout: float) -> Flow[Completion]:
    response = yield from call(
        "generator", GeneratorServiceStub, lambda stub: stub.Generate, request, timeout
    )
    return _generate_messages.completion(response)
