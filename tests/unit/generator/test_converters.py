"""Messages to prompts and back: what no engine here can do is refused by name, never ignored."""

from typing import Any

import pytest
from gristmill.generator.v1 import prompt_pb2, result_pb2, sampling_params_pb2
from gristmill.registry.v1 import model_pb2

from services.generator import converters as to
from services.generator.engine import Capabilities, Sampling
from services.generator.engines.fake import FakeTokenizer
from services.generator.generation import Choice, Generation, Prompt
from services.generator.outbox import Delta
from services.generator.tools import Tool
from services.inference.loaded import Wanted
from services.runtime import errors

Params = sampling_params_pb2.SamplingParams
Constraint = sampling_params_pb2.OutputConstraint
Choose = prompt_pb2.ToolChoice
F = prompt_pb2.Tool(name="f", description="does f", parameters_json_schema="{}")
PATH = "prompts[2]"


def chat(*messages: prompt_pb2.ChatMessage, **more: Any) -> prompt_pb2.Prompt:
    """A chat prompt."""
    return prompt_pb2.Prompt(chat=prompt_pb2.ChatPrompt(messages=messages, **more))


def message(role: int = prompt_pb2.ROLE_USER, **more: Any) -> prompt_pb2.ChatMessage:
    """A message of a chat."""
    return prompt_pb2.ChatMessage(**{"role": role, "content": "hi", **more})


NONE = Capabilities()


class TestUnsupported:
    @pytest.mark.parametrize(
        ("params", "field"),
        [
            (Params(logit_bias={7: 1.0}), "params.logit_bias"),
            (Params(logprobs=1), "params.logprobs"),
            (Params(logprobs=20), "params.logprobs"),
            (Params(min_p=1.0), "params.min_p"),
            *(
                (Params(constraint=Constraint(**given)), f"params.constraint.{name}")
                for name, given in {
                    "json_schema": {"json_schema": "{}"},
                    "regex": {"regex": "a+"},
                    "json_object": {"json_object": True},
                    "choices": {"choices": sampling_params_pb2.Choices(choices=["a"])},
                }.items()
            ),
        ],
    )
    def test_what_an_engine_cannot_do_is_refused_by_name(self, params: Params, field: str) -> None:
        with pytest.raises(errors.UnsupportedField) as refused:
            NONE.check(to.sampling_in(params), "parrot")
        assert [v.field for v in refused.value.violations] == [field]
        assert "parrot" in refused.value.message
        assert refused.value.reason_given == "UNSUPPORTED_FIELD"

    def test_what_it_can_do_is_not(self) -> None:
        able = Capabilities(3, True, True, frozenset({"regex"}))
        params = Params(logit_bias={7: 1.0}, logprobs=3, min_p=1.0)
        params.constraint.regex = "a"
        able.check(to.sampling_in(params), "parrot")

    @pytest.mark.parametrize("given", [Constraint(), Constraint(json_object=False)])
    def test_a_constraint_of_no_kind_is_refused(self, given: Constraint) -> None:
        with pytest.raises(errors.InvalidRequest) as refused:
            to.sampling_in(Params(constraint=given))
        assert [v.field for v in refused.value.violations] == ["params.constraint.constraint"]


class TestTools:
    @pytest.mark.parametrize(
        ("prompt", "field"),
        [
            (chat(message(), tool_choice=Choose(required=True)), "chat.tool_choice"),
            (chat(message(), tool_choice=Choose(name="f")), "chat.tool_choice"),
            (chat(message(), tools=[F], tool_choice=Choose(name="g")), "chat.tool_choice.name"),
            (chat(message(), tools=[F, F]), "chat.tools"),
            (
                chat(message(), message(tool_calls=[prompt_pb2.ToolCall(name="f")])),
                "chat.messages[1].tool_calls",
            ),
            (chat(message(tool_call_id="c1")), "chat.messages[0].tool_call_id"),
            (
                chat(
                    message(
                        prompt_pb2.ROLE_ASSISTANT,
                        tool_calls=[prompt_pb2.ToolCall(name="f", arguments_json="{")],
                    )
                ),
                "chat.messages[0].tool_calls[0].arguments_json",
            ),
        ],
    )
    def test_what_makes_no_sense_is_refused_by_name(
        self, prompt: prompt_pb2.Prompt, field: str
    ) -> None:
        with pytest.raises(errors.InvalidRequest) as refused:
            to.prompt_in(prompt, PATH)
        assert [v.field for v in refused.value.violations] == [f"{PATH}.{field}"]

    @pytest.mark.parametrize(
        ("choice", "wanted"),
        [
            (None, ("auto", "")),
            (Choose(none=False), ("auto", "")),
            (Choose(none=True), ("none", "")),
            (Choose(required=True), ("required", "")),
            (Choose(name="f"), ("required", "f")),
        ],
    )
    def test_which_must_be_called(self, choice: Any, wanted: tuple[str, str]) -> None:
        toolbox = to.prompt_in(chat(message(), tools=[F], tool_choice=choice), PATH).toolbox
        assert toolbox is not None
        assert (toolbox.choice, toolbox.name) == wanted
        assert toolbox.tools == (Tool("f", "does f", "{}"),)

    def test_calls_and_their_answers_go_to_the_template(self) -> None:
        call = prompt_pb2.ToolCall(id="c1", name="f", arguments_json='{"a": 1}')
        given = chat(
            message(prompt_pb2.ROLE_ASSISTANT, content="", tool_calls=[call]),
            message(prompt_pb2.ROLE_TOOL, tool_call_id="c1"),
        )
        function = {"name": "f", "arguments": {"a": 1}}
        assert to.prompt_in(given, PATH).messages == (
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "c1", "type": "function", "function": function}],
            },
            {"role": "tool", "content": "hi", "tool_call_id": "c1"},
        )


class TestPromptIn:
    def test_text_and_tokens(self) -> None:
        text = prompt_pb2.Prompt(text=prompt_pb2.TextPrompt(text="a\0é"))
        assert to.prompt_in(text, PATH) == Prompt(text="a\0é")
        tokens = prompt_pb2.Prompt(tokens=prompt_pb2.TokenPrompt(ids=[0, 2**32 - 1]))
        assert to.prompt_in(tokens, PATH) == Prompt(ids=(0, 2**32 - 1))

    @pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
    def test_every_role_of_the_contract_has_its_word(self, role: str) -> None:
        given = chat(message(prompt_pb2.Role.Value(f"ROLE_{role.upper()}")))
        assert to.prompt_in(given, PATH).messages == ({"role": role, "content": "hi"},)

    def test_the_name_of_a_speaker_goes_to_the_template(self) -> None:
        given = chat(message(name="Ann"))
        (found,) = to.prompt_in(given, PATH).messages or ()
        assert found == {"role": "user", "content": "hi", "name": "Ann"}

    def test_a_role_that_nobody_knows_is_not_taken_for_a_person(self) -> None:
        with pytest.raises(errors.InvalidRequest) as refused:
            to.prompt_in(chat(message(), message(17)), PATH)
        assert [v.field for v in refused.value.violations] == [f"{PATH}.chat.messages[1].role"]

    def test_no_content_is_refused(self) -> None:
        with pytest.raises(errors.InvalidRequest) as refused:
            to.prompt_in(prompt_pb2.Prompt(), PATH)
        assert [v.field for v in refused.value.violations] == [f"{PATH}.content"]


class TestSamplingIn:
    def test_nothing_given_is_the_contracts_default(self) -> None:
        assert to.sampling_in(Params()) == Sampling(max_tokens=0, temperature=1.0)

    def test_zero_is_not_absent(self) -> None:
        given = to.sampling_in(
            Params(temperature=0, min_p=0, seed=0, logprobs=0, presence_penalty=0)
        )
        assert (given.temperature, given.min_p, given.seed) == (0, 0, 0)
        assert (given.logprobs, given.presence_penalty) == (0, 0)

    def test_every_parameter_reaches_the_engine(self) -> None:
        numbers: dict[str, Any] = {
            "temperature": 0.5,
            "top_p": 0.25,
            "top_k": 7,
            "min_p": 0.125,
            "presence_penalty": -1.5,
            "frequency_penalty": 1.5,
            "repetition_penalty": 1.25,
            "seed": 9,
            "ignore_eos": True,
        }
        given = to.sampling_in(Params(**numbers, stop_token_ids=[3, 4]))
        assert given == Sampling(0, **numbers, stop_token_ids=(3, 4))

    def test_every_seed_is_one_that_an_engine_can_count_on_from(self) -> None:
        """Choices take the next ones: 64 bits must hold those too."""
        seed = to.sampling_in(Params(seed=2**64 - 1)).seed
        assert seed is not None
        assert 0 <= seed + 15 < 2**64

    def test_every_parameter_of_the_contract_is_known_here(self) -> None:
        """A field that comes to the contract must be honoured or refused."""
        honoured = {"max_tokens", "stop", "n", *Sampling.__slots__}
        assert {field.name for field in Params.DESCRIPTOR.fields} == honoured


def generation(*choices: Choice) -> Generation:
    """A generation with every time of its own."""
    return Generation([1, 2, 3], 0.001, 0.0, 0.002, 0.003, 0.007, 2, list(choices))


class TestOut:
    def test_a_reference(self) -> None:
        assert to.wanted(model_pb2.ModelRef(model="m", version=3)) == Wanted("m", 3, "")
        assert to.wanted(model_pb2.ModelRef(model="m", alias="a")) == Wanted("m", 0, "a")
        assert to.wanted(model_pb2.ModelRef()) == Wanted()

    def test_a_complete_answer_has_text_tokens_and_measures(self) -> None:
        choice = Choice(1, "ab", [5, 6, 7], [-0.5, -1.0, -2.0], [], "stop", "END")
        out = to.generation_out(generation(choice), FakeTokenizer())
        assert out.choices[0] == result_pb2.Choice(
            index=1,
            text="ab",
            token_ids=[5, 6, 7],
            finish_reason=result_pb2.FINISH_REASON_STOP,
            stop_match="END",
            logprobs=[
                result_pb2.TokenLogprob(token_id=t, text=bytes([t]), logprob=p)
                for t, p in ((5, -0.5), (6, -1.0), (7, -2.0))
            ],
        )
        assert out.usage == result_pb2.Usage(prompt_tokens=3, cached_tokens=2, completion_tokens=3)
        assert out.timings == result_pb2.Timings(
            preprocess_us=1000,
            queue_us=2000,
            time_to_first_token_us=3000,
            time_per_output_token_us=2000,
            total_us=7000,
        )

    def test_the_last_message_of_a_stream_leaves_out_what_deltas_carried(self) -> None:
        choice = Choice(0, "ab", [5, 6], [-0.5, -1.0], [], "length")
        out = to.finished_out(generation(choice))
        assert list(out.choices) == [
            result_pb2.Choice(index=0, finish_reason=result_pb2.FINISH_REASON_LENGTH)
        ]
        assert out.usage.completion_tokens == 2

    @pytest.mark.parametrize("given", [(), (-0.5, -1.0)])
    def test_a_delta_has_log_probabilities_where_the_engine_told_them(self, given: Any) -> None:
        top = (((5, -0.5), (9, -2.0)), ()) if given else ()
        out = to.delta_out(Delta(2, "é", (5, 6), given, top), FakeTokenizer())
        assert (out.index, out.text, list(out.token_ids)) == (2, "é", [5, 6])
        assert [p.logprob for p in out.logprobs] == list(given)
        if given:
            assert [(t.token_id, t.text, t.logprob) for t in out.logprobs[0].top] == [
                (5, b"\x05", -0.5),
                (9, b"\t", -2.0),
            ]
            assert not out.logprobs[1].top

    def test_times_beyond_a_field_are_its_largest(self) -> None:
        long = Generation([1], 1e9, 0.0, 1e9, -1.0, 1e9)
        out = to.timings_out(long)
        assert out.total_us == out.preprocess_us == 2**32 - 1
        assert out.time_to_first_token_us == 0
