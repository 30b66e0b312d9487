"""What every engine must do, and what each of them can: the table in docs/generator.md is this."""

import asyncio
import json
import re
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from services.generator.constraints import Constraint
from services.generator.engine import Engine, Sampling
from services.generator.engines import fake, openvino, vllm
from services.runtime.errors import EngineRestarting, InvalidRequest, UnsupportedField
from tests.engines.rig import ROOT, Heard, back, empty, hear, patiently, permit, text

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
WORDS = "The capital of France is"
REPEATING = "one two one two one two one two one two one"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def has_model(engine: Engine) -> bool:
    """Whether it chooses tokens at all."""
    return engine.name != "fake"


async def test_greedy_is_the_same_each_time(engine: Engine) -> None:
    first = await hear(engine, WORDS)
    assert (await hear(engine, WORDS)).ids == first.ids
    assert len(first.ids) == 12


@pytest.mark.parametrize("most", [1, 2, 7])
async def test_max_tokens_is_the_most(engine: Engine, most: int) -> None:
    heard = await hear(engine, WORDS, max_tokens=most, ignore_eos=True)
    assert len(heard.ids) == most
    assert heard.finish == "length"


async def test_a_stop_token_ends_it_and_is_its_last(engine: Engine) -> None:
    free = await hear(engine, WORDS)
    stop = free.ids[4]
    heard = await hear(engine, WORDS, stop_token_ids=(stop,))
    assert heard.ids == free.ids[: free.ids.index(stop) + 1]
    assert heard.finish == "stop"


async def test_the_models_own_end_stops_it_unless_ignored(engine: Engine) -> None:
    (eos,) = engine.tokenizer.eos_ids
    if not has_model(engine):
        prompt = [65, 66, eos, 67]
    else:
        template = engine.tokenizer.template
        assert template is not None
        said = template.render([{"role": "user", "content": "What is the capital of France?"}])
        prompt = engine.tokenizer.encode(said)
    ended = await hear(engine, prompt, max_tokens=100)
    assert (ended.ids[-1], ended.finish) == (eos, "stop")
    on = await hear(engine, prompt, max_tokens=len(ended.ids) + 1, ignore_eos=True)
    if has_model(engine):
        assert len(on.ids) == len(ended.ids) + 1
    assert on.ids[: len(ended.ids)] == ended.ids
    assert on.finish == "length"


async def test_leaving_ends_the_work_within_a_step(engine: Engine) -> None:
    sampling = Sampling(1000, 0.0, ignore_eos=True)
    prompt = engine.tokenizer.encode(WORDS * 100)
    steps = engine.stats.steps
    async with aclosing(engine.submit(prompt, sampling, permit())) as stream:
        await patiently(anext(stream))
        assert engine.stats.running >= 1
    await empty(engine)
    assert engine.stats.orphaned_steps == 0
    # A prompt is still computed when all else is done; nobody computes for who has left.
    assert engine.stats.steps - steps < 200 or not has_model(engine)


async def test_the_chosen_tokens_log_probabilities(engine: Engine) -> None:
    heard = await hear(engine, WORDS, logprobs=0)
    assert len(heard.logprobs) == len(heard.ids)
    assert all(value <= 0 for value in heard.logprobs)
    assert not has_model(engine) or len(set(heard.logprobs)) > 3


@pytest.mark.parametrize("count", [1, 5, 20])
async def test_alternatives_with_their_log_probabilities(engine: Engine, count: int) -> None:
    sampling = Sampling(4, 0.0, logprobs=count)
    if engine.capabilities.max_logprobs < count:
        refused(engine, sampling, "params.logprobs")
        return
    heard = await hear(engine, WORDS, max_tokens=4, logprobs=count)
    for token, logprob, top in zip(heard.ids, heard.logprobs, heard.top, strict=True):
        values = [value for _, value in top[:count]]
        assert len(values) == count
        assert values == sorted(values, reverse=True)
        assert tuple(top[0]) == pytest.approx((token, logprob))


def refused(engine: Engine, sampling: Sampling, field: str) -> None:
    """Never ignored: refused by the field's and the engine's name."""
    with pytest.raises(UnsupportedField) as caught:
        engine.capabilities.check(sampling, engine.name)
    assert [one.field for one in caught.value.violations] == [field]
    assert engine.name in caught.value.message


async def test_equal_seeds_draw_equal_tokens(engine: Engine) -> None:
    async def drawn(seed: int) -> list[int]:
        return (await hear(engine, WORDS, temperature=1.0, seed=seed)).ids

    assert await drawn(7) == await drawn(7)
    if has_model(engine):
        assert len({tuple(await drawn(seed)) for seed in range(6)}) > 3


@pytest.mark.parametrize(
    "narrow", [{"top_k": 1}, {"top_p": 0.0001}, {"min_p": 0.999}, {"temperature": 0.001}]
)
async def test_what_leaves_one_token_to_draw_from_draws_that(
    engine: Engine, narrow: dict[str, Any]
) -> None:
    greedy = await hear(engine, WORDS)
    drawn = await hear(engine, WORDS, **{"temperature": 1.0, "seed": 3, **narrow})
    assert drawn.ids == greedy.ids


@pytest.mark.parametrize(
    "penalty", [{"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 1.9}]
)
async def test_penalties_change_what_is_said_again(engine: Engine, penalty: dict[str, Any]) -> None:
    if not has_model(engine):
        return
    plain = await hear(engine, REPEATING, max_tokens=24, ignore_eos=True)
    varied = await hear(engine, REPEATING, max_tokens=24, ignore_eos=True, **penalty)
    assert varied.ids != plain.ids


async def test_a_bias_is_added_to_a_token(engine: Engine) -> None:
    token = engine.tokenizer.encode(" cheese")[0]
    biased = Sampling(6, 0.0, logit_bias=((token, 100.0),))
    if not engine.capabilities.logit_bias:
        refused(engine, biased, "params.logit_bias")
        return
    assert (await hear(engine, WORDS, max_tokens=6, logit_bias=((token, 100.0),))).ids == [
        token
    ] * 6


async def test_a_json_schema_is_kept_to(engine: Engine) -> None:
    constraint = Constraint("json_schema", json.dumps(SCHEMA))
    heard = await constrained(engine, "A person as JSON: ", constraint)
    if heard is not None:
        found = json.loads(text(engine, heard))
        assert set(found) == {"name", "age"}
        assert isinstance(found["age"], int)


async def test_any_json_object_is_one(engine: Engine) -> None:
    heard = await constrained(engine, 'An object: {"a":', Constraint("json_object"))
    if heard is not None:
        assert isinstance(json.loads(text(engine, heard)), dict)


async def test_an_expression_is_matched_as_a_whole(engine: Engine) -> None:
    pattern = r"[a-c]{3}-[0-9]{2}"
    heard = await constrained(engine, "The code is ", Constraint("regex", pattern))
    if heard is not None:
        assert re.fullmatch(pattern, text(engine, heard))


@pytest.mark.parametrize(
    "choices", [("yes", "no"), ('say "hi"', "back\\slash", "zwei\nZeilen", "é😀")]
)
async def test_one_of_the_choices_is_chosen(engine: Engine, choices: tuple[str, ...]) -> None:
    heard = await constrained(engine, "Answer: ", Constraint("choices", choices=choices))
    if heard is not None:
        assert text(engine, heard) in choices


async def constrained(engine: Engine, prompt: str, constraint: Constraint) -> Heard | None:
    """A constrained answer to its end; None where the engine has none of the kind."""
    if constraint.kind not in engine.capabilities.constraints:
        sampling = Sampling(1, constraint=constraint)
        refused(engine, sampling, f"params.constraint.{constraint.kind}")
        return None
    heard = await hear(engine, prompt, max_tokens=80, constraint=constraint)
    assert heard.finish == "stop"
    heard.ids = [token for token in heard.ids if token not in engine.tokenizer.eos_ids]
    return heard


@pytest.mark.parametrize(
    "bad", [Constraint("regex", "(?=a)b"), Constraint("json_schema", '{"type": "objec"}')]
)
async def test_a_constraint_that_it_cannot_follow_is_refused(
    engine: Engine, bad: Constraint
) -> None:
    """These do not pass our own checks; were one to, it costs the engine one life at most."""
    if bad.kind not in engine.capabilities.constraints:
        return
    alone = await hear(engine, WORDS, max_tokens=60, ignore_eos=True)
    neighbour = asyncio.ensure_future(hear(engine, WORDS, max_tokens=60, ignore_eos=True))
    with pytest.raises(InvalidRequest, match="refused"):
        await patiently(hear(engine, WORDS, constraint=bad))
    if engine.capabilities.crash_alone:
        assert (await patiently(neighbour)).ids == alone.ids
    else:
        with pytest.raises(EngineRestarting):
            await patiently(neighbour)
        await patiently(back(engine))
    neighbour = asyncio.ensure_future(hear(engine, WORDS, max_tokens=60, ignore_eos=True))
    for _ in range(3):
        with pytest.raises(InvalidRequest):
            await patiently(hear(engine, WORDS, constraint=bad))
    assert (await patiently(neighbour)).ids == alone.ids
    await empty(engine)


async def test_what_is_in_the_prefix_cache_is_told(engine: Engine) -> None:
    prompt = engine.tokenizer.encode("A long beginning that two prompts share. " * 100)
    await hear(engine, [*prompt, prompt[0]], max_tokens=1)
    again = await hear(engine, [*prompt, prompt[1]], max_tokens=1)
    if engine.capabilities.cached_tokens:
        assert 0.8 * len(prompt) <= again.cached <= len(prompt)
    else:
        assert again.cached == 0


async def test_many_at_once_all_end(engine: Engine) -> None:
    prompts = [f"Number {n}: " + WORDS for n in range(24)]
    found = await patiently(
        asyncio.gather(*[hear(engine, one, max_tokens=12, ignore_eos=True) for one in prompts])
    )
    assert all(len(one.ids) == 12 for one in found)
    await empty(engine)
    assert engine.stats.orphaned_steps == 0


async def test_tokens_are_pieces_of_text(engine: Engine) -> None:
    ids = engine.tokenizer.encode("Hello, world!")
    assert b"".join(engine.tokenizer.piece(one) for one in ids).decode() == "Hello, world!"


def table() -> str:
    """What each engine can do, as the documentation has it."""
    engines = {
        "fake (tests)": fake.FakeEngine.capabilities,
        "OpenVINO GenAI": openvino.CAPABILITIES,
        "vLLM": vllm.CAPABILITIES,
    }

    def yes(value: bool) -> str:
        return "yes" if value else "refused"

    kinds = ("json_schema", "json_object", "regex", "choices")
    rows = [
        (
            "`logprobs`",
            [f"0 to {c.max_logprobs}" if c.max_logprobs else "0" for c in engines.values()],
        ),
        ("`logit_bias`", [yes(c.logit_bias) for c in engines.values()]),
        ("`min_p` of 1", [yes(c.min_p_of_one) for c in engines.values()]),
        *(
            (f"`constraint.{k}`", [yes(k in c.constraints) for c in engines.values()])
            for k in kinds
        ),
        (
            "a constraint that only the engine finds bad",
            ["fails alone" if c.crash_alone else "restarts it, once" for c in engines.values()],
        ),
        ("`usage.cached_tokens`", ["yes" if c.cached_tokens else "0" for c in engines.values()]),
    ]
    head = f"| | {' | '.join(engines)} |\n|---|{'---|' * len(engines)}\n"
    return head + "".join(f"| {name} | {' | '.join(cells)} |\n" for name, cells in rows)


async def test_the_documentation_has_the_table() -> None:
    assert table() in (ROOT / "docs" / "generator.md").read_text(encoding="utf-8")


async def test_a_bound_above_what_it_can_is_refused(engine: Engine) -> None:
    able = engine.capabilities
    refused(engine, Sampling(1, logprobs=able.max_logprobs + 1), "params.logprobs")
    refused_kinds = {"json_schema", "json_object", "regex", "choices"} - able.constraints
    none = replace(able, constraints=frozenset())
    for kind in refused_kinds:
        with pytest.raises(UnsupportedField):
            none.check(Sampling(1, constraint=Constraint(kind)), engine.name)  # type: ignore[arg-type]
