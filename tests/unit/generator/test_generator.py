"""One model at work over engines that the test steps: limits, choices, stops, ends, permits."""

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.generator.engine import Sampling, Tokens
from services.generator.engines.fake import FakeEngine
from services.generator.generation import Prompt
from services.generator.generator import Generator
from services.generator.outbox import Delta
from services.runtime import errors
from services.runtime.admission import Limits
from services.runtime.deadline import Deadline
from services.templates.chat import ChatTemplate
from tests.harness import FakeClock, metric, soon
from tests.unit.generator.stack import (
    CONTEXT,
    NAME,
    ScriptedEngine,
    answer,
    asked,
    driven,
    generator,
    ids,
    only,
    said,
    script,
    text_of,
    until,
)


def field_of(error: errors.GristmillError) -> str:
    """The one field that an error names."""
    (violation,) = error.violations
    return violation.field


class TestContext:
    @pytest.mark.parametrize(
        ("prompt", "max_tokens", "field"),
        [
            (CONTEXT, None, "prompt"),
            (CONTEXT + 9, None, "prompt"),
            (CONTEXT, 1, "prompt"),
            (CONTEXT - 1, 2, "params.max_tokens"),
            (1, CONTEXT, "params.max_tokens"),
        ],
    )
    async def test_what_does_not_fit_is_refused_by_field(
        self, prompt: int, max_tokens: int | None, field: str
    ) -> None:
        with generator(FakeEngine()) as g, pytest.raises(errors.InvalidRequest) as refused:
            await g.prepare(Prompt(text="x" * prompt), asked(max_tokens=max_tokens))
        assert field_of(refused.value) == field
        assert str(CONTEXT) in refused.value.message
        assert refused.value.reason_given == "INVALID_FIELD"

    @pytest.mark.parametrize(
        ("prompt", "wanted", "default", "given"),
        [
            (CONTEXT - 1, 1, 512, 1),
            (1, CONTEXT - 1, 512, CONTEXT - 1),
            (1, CONTEXT - 1, 5, CONTEXT - 1),
            (10, None, 512, CONTEXT - 10),
            (10, None, 20, 20),
            (CONTEXT - 1, None, 20, 1),
        ],
    )
    async def test_what_fits_is_limited_by_the_caller_else_by_room_and_default(
        self, prompt: int, wanted: int | None, default: int, given: int
    ) -> None:
        with generator(FakeEngine(), default_max_tokens=default) as g:
            generation, sampling = await g.prepare(
                Prompt(text="x" * prompt), asked(max_tokens=wanted)
            )
        assert sampling.max_tokens == given
        assert generation.prompt == ids("x" * prompt)

    async def test_a_prompt_without_tokens_is_refused(self) -> None:
        with generator(FakeEngine()) as g, pytest.raises(errors.InvalidRequest) as refused:
            await g.prepare(Prompt(messages=({"role": "user", "content": ""},)), asked())
        assert field_of(refused.value) == "prompt"

    async def test_a_field_is_named_by_the_path_of_its_prompt(self) -> None:
        with generator(FakeEngine()) as g, pytest.raises(errors.InvalidRequest) as refused:
            await g.prepare(Prompt(text="x" * CONTEXT), asked(), "prompts[7]")
        assert field_of(refused.value) == "prompts[7]"

    @pytest.mark.parametrize("bad", [0x110000, 2**32 - 1])
    async def test_a_token_outside_the_vocabulary_is_refused(self, bad: int) -> None:
        """An engine looks it up behind the end of its embeddings."""
        with generator(FakeEngine()) as g, pytest.raises(errors.InvalidRequest) as refused:
            await g.prepare(Prompt(ids=(65, bad, 66)), asked(), "prompts[0]")
        assert field_of(refused.value) == "prompts[0].tokens.ids[1]"

    async def test_a_template_that_refuses_is_the_callers_fault(self) -> None:
        engine = FakeEngine()
        engine.tokenizer.template = ChatTemplate(
            "{{ raise_exception('roles must alternate') }}", {}
        )
        with generator(engine) as g, pytest.raises(errors.InvalidRequest) as refused:
            await g.prepare(Prompt(messages=({"role": "tool", "content": "x"},)), asked())
        assert field_of(refused.value) == "prompt.chat"
        assert "roles must alternate" in refused.value.message

    async def test_a_model_without_a_template_takes_no_chat(self) -> None:
        engine = FakeEngine()
        engine.tokenizer.template = None
        with generator(engine) as g, pytest.raises(errors.UnsupportedField) as refused:
            await g.prepare(Prompt(messages=({"role": "user", "content": "x"},)), asked())
        assert field_of(refused.value) == "prompt.chat"

    @pytest.mark.parametrize(
        ("prompt", "max_tokens", "field"),
        [(30, 2, "prompt"), (29, 2, "params.max_tokens"), (1, None, "params.max_tokens")],
    )
    async def test_what_the_cache_cannot_hold_is_refused_at_once(
        self, prompt: int, max_tokens: int | None, field: str
    ) -> None:
        engine = FakeEngine()
        engine.capacity_tokens = 30
        with generator(engine) as g, pytest.raises(errors.InvalidRequest) as refused:
            await g.prepare(Prompt(text="x" * prompt), asked(max_tokens=max_tokens))
        assert field_of(refused.value) == field
        assert "cache of 30" in refused.value.message


class TestPrompt:
    @pytest.mark.parametrize(
        "prompt",
        [
            Prompt(text="abc"),
            Prompt(ids=(97, 98, 99)),
            Prompt(messages=({"role": "user", "content": "a"}, {"role": "user", "content": "bc"})),
        ],
    )
    async def test_three_forms_of_one_prompt_are_the_same_tokens(self, prompt: Prompt) -> None:
        with generator(FakeEngine()) as g:
            assert await g.encode(prompt) == ids("abc")


class TestAnswer:
    async def test_deltas_join_to_the_text_and_carry_its_tokens(self) -> None:
        deltas: list[Delta] = []
        engine = FakeEngine()
        with generator(engine) as g:
            choice = only(await driven(engine, answer(g, "héllo 中😀", asked(), deltas)))
        assert text_of(deltas) == choice.text == "héllo 中😀"
        assert [t for delta in deltas for t in delta.ids] == choice.ids == ids("héllo 中😀")
        assert (choice.finish, choice.stop_match) == ("length", "")
        assert engine.aborted == []

    async def test_usage_counts_what_was_read_and_written(self) -> None:
        engine = FakeEngine()
        with generator(engine) as g:
            generation = await driven(engine, answer(g, "abcdef", asked(max_tokens=4, n=3)))
        assert len(generation.prompt) == 6
        assert generation.completion_tokens == 3 * 4

    async def test_the_end_token_is_no_part_of_the_answer(self) -> None:
        deltas: list[Delta] = []
        engine = ScriptedEngine([said("ab"), Tokens([ord("c"), 0], [-0.5, -0.1], "stop")])
        with generator(engine) as g:
            choice = only(await answer(g, "x", asked(), deltas))
        assert (choice.text, choice.ids, choice.finish) == ("abc", ids("abc"), "stop")
        assert choice.stop_match == ""
        assert text_of(deltas) == "abc"

    async def test_the_end_token_alone_is_an_empty_answer(self) -> None:
        engine, deltas = ScriptedEngine([Tokens([0], [-0.1], "stop")]), list[Delta]()
        with generator(engine) as g:
            choice = only(await answer(g, "x", asked(), deltas))
        assert (choice.text, choice.ids, choice.finish, deltas) == ("", [], "stop", [])

    async def test_an_end_token_that_is_to_be_ignored_does_not_end(self) -> None:
        engine = ScriptedEngine([Tokens([97, 0], [-1, -1]), said("b", "length")])
        with generator(engine) as g:
            choice = only(await answer(g, "x", asked(sampling=Sampling(0, ignore_eos=True))))
        assert (choice.text, choice.ids) == ("ab", [97, 0, 98])

    async def test_a_stop_token_says_which_it_was(self) -> None:
        engine = ScriptedEngine([said("ab"), said("c", "stop")])
        with generator(engine) as g:
            sampling = Sampling(0, stop_token_ids=(99, 100))
            choice = only(await answer(g, "x", asked(sampling=sampling)))
        assert (choice.finish, choice.stop_match) == ("stop", "99")
        assert choice.ids == ids("abc")

    @pytest.mark.parametrize("wanted", [True, False])
    async def test_log_probabilities_come_where_asked_for_one_for_each_token(
        self, wanted: bool
    ) -> None:
        deltas: list[Delta] = []
        engine = ScriptedEngine(
            [said("ab", logprob=-1), said("c", logprob=-2), Tokens([0], [-3], "stop")]
        )
        with generator(engine) as g:
            wants = asked(sampling=Sampling(0, logprobs=0 if wanted else None))
            choice = only(await answer(g, "x", wants, deltas))
        expected = [-1, -1, -2] if wanted else []
        assert choice.logprobs == expected
        assert [p for delta in deltas for p in delta.logprobs] == expected

    async def test_tokens_whose_text_is_not_complete_wait_for_the_delta_that_has_it(self) -> None:
        """Three tokens for one character: one delta with all three."""
        whole = "😀".encode()

        class Bytes:
            eos_ids = frozenset({256})
            vocabulary = 257
            template = None
            pieces = None

            def encode(self, text: str) -> list[int]:
                return list(text.encode())

            def decode(self, ids: Sequence[int]) -> str:
                return bytes(i for i in ids if i < 256).decode(errors="ignore")

            def piece(self, token: int) -> bytes:
                return bytes([token])

        steps = [Tokens([whole[0]]), Tokens([whole[1]]), Tokens(list(whole[2:]), (), "length")]
        engine, deltas = ScriptedEngine(steps), list[Delta]()
        engine.tokenizer = Bytes()  # type: ignore[assignment]  # as good as the fake
        with generator(engine) as g:
            choice = only(await answer(g, "x", asked(), deltas))
        assert [(d.text, d.ids) for d in deltas] == [("😀", tuple(whole))]
        assert choice.text == "😀"

    @given(st.lists(st.text(alphabet="ab\n", max_size=4), max_size=8), st.data())
    @settings(max_examples=60, deadline=None)
    async def test_however_tokens_come_deltas_join_to_the_text(
        self, pieces: list[str], data: st.DataObject
    ) -> None:
        stops = tuple(data.draw(st.lists(st.text("ab", min_size=1, max_size=3), max_size=3)))
        engine = ScriptedEngine([*(said(piece) for piece in pieces), said("", "length")])
        deltas: list[Delta] = []
        with generator(engine) as g:
            choice = only(await answer(g, "x", asked(stop=stops), deltas))
        assert text_of(deltas) == choice.text
        assert all(delta.text for delta in deltas)
        assert "".join(pieces).startswith(choice.text)
        assert not any(stop in choice.text for stop in stops)
        assert (choice.finish == "stop") == bool(choice.stop_match)
        if not choice.stop_match:
            assert choice.text == "".join(pieces)


class TestChoices:
    async def test_each_choice_has_its_own_seed_from_the_callers(self) -> None:
        engine = ScriptedEngine(script("a"), script("bc"), script("def"))
        deltas: list[Delta] = []
        with generator(engine) as g:
            wants = asked(n=3, sampling=Sampling(0, seed=41))
            generation = await answer(g, "x", wants, deltas)
        assert [s.seed for s in engine.samplings] == [41, 42, 43]
        assert [(c.index, c.text) for c in generation.choices] == [(0, "a"), (1, "bc"), (2, "def")]
        assert [text_of(deltas, i) for i in range(3)] == ["a", "bc", "def"]
        assert generation.completion_tokens == 6

    async def test_without_a_seed_each_has_a_fresh_one(self) -> None:
        engine = ScriptedEngine(script("a"))
        with generator(engine) as g:
            await answer(g, "x", asked(n=4))
            await answer(g, "x", asked(n=4))
        seeds = [s.seed for s in engine.samplings]
        assert None not in seeds
        assert len(set(seeds)) == 8

    async def test_one_that_fails_ends_the_others(self) -> None:
        engine = ScriptedEngine([said("a")], [errors.EngineRestarting("it died")])
        with generator(engine) as g:
            with pytest.raises(errors.EngineRestarting):
                await soon(answer(g, "x", asked(n=2)))
            assert g.admission.items == 0
        assert engine.aborted == [0]
        assert engine.running == {}

    async def test_a_permit_counts_every_choice(self) -> None:
        engine = ScriptedEngine(script("a"))
        with generator(engine, limits=Limits(max_items=3, max_bytes=10**9)) as g:
            await answer(g, "x", asked(n=3))
            with pytest.raises(errors.InvalidRequest):
                await answer(g, "x", asked(n=4))
            assert g.admission.items == 0

    async def test_prompt_tokens_are_bounded_over_all_choices(self) -> None:
        engine = ScriptedEngine(script("a"))
        with generator(engine, limits=Limits(max_items=99, max_bytes=30)) as g:
            await answer(g, "x" * 10, asked(n=3))
            with pytest.raises(errors.InvalidRequest):
                await answer(g, "x" * 11, asked(n=3))

    async def test_the_quota_counts_tokens_read_and_to_be_written(self) -> None:
        engine, clock = ScriptedEngine(script("a")), FakeClock()
        limits = Limits(99, 10**9, quota_units_per_s=10, quota_burst_units=30)
        with generator(engine, limits=limits, clock=clock) as g:
            await answer(g, "x" * 10, asked(clock, n=2, max_tokens=5))
            with pytest.raises(errors.QuotaExceeded) as refused:
                await answer(g, "x", asked(clock, max_tokens=9))
            assert refused.value.retry_after_s == pytest.approx(1.0)
            await answer(g, "x", asked(clock, max_tokens=9, identity="bob"))
            clock.advance(1.0)
            await answer(g, "x", asked(clock, max_tokens=9))


class TestStops:
    async def test_a_stop_ends_the_choice_and_its_work(self) -> None:
        engine, deltas = FakeEngine(), list[Delta]()
        with generator(engine) as g:
            work = answer(g, "one two three", asked(stop=("two",)), deltas)
            choice = only(await driven(engine, work))
            assert g.admission.items == 0
        assert (choice.text, choice.finish, choice.stop_match) == ("one ", "stop", "two")
        assert text_of(deltas) == "one "
        assert engine.aborted == [1]
        assert engine.running == {}

    async def test_tokens_of_the_stop_are_counted_and_no_more(self) -> None:
        engine = FakeEngine()
        with generator(engine) as g:
            generation = await driven(engine, answer(g, "one two three", asked(stop=("two",))))
        assert generation.completion_tokens == len("one two")

    async def test_the_beginning_of_a_stop_is_text_when_nothing_more_comes(self) -> None:
        engine, deltas = FakeEngine(), list[Delta]()
        with generator(engine) as g:
            choice = only(await driven(engine, answer(g, "say EN", asked(stop=("END",)), deltas)))
        assert (choice.text, choice.finish) == ("say EN", "length")
        assert text_of(deltas) == "say EN"
        assert [t for d in deltas for t in d.ids] == ids("say EN")

    async def test_a_stop_in_the_last_token_is_a_stop(self) -> None:
        engine = ScriptedEngine([said("ab"), said("cEND", "length")])
        with generator(engine) as g:
            choice = only(await answer(g, "x", asked(stop=("END",))))
        assert (choice.text, choice.finish, choice.stop_match) == ("abc", "stop", "END")
        assert engine.aborted == []

    async def test_one_choice_stops_alone(self) -> None:
        engine = ScriptedEngine([said("aX")], script("bcd"))
        with generator(engine) as g:
            generation = await answer(g, "x", asked(n=2, stop=("X",)))
        assert [(c.text, c.finish) for c in generation.choices] == [
            ("a", "stop"),
            ("bcd", "length"),
        ]
        assert engine.aborted == [0]


class TestDeadline:
    async def test_one_that_passes_ends_the_work(self) -> None:
        engine, clock, deltas = FakeEngine(), FakeClock(), list[Delta]()
        with generator(engine, clock=clock) as g:
            work = asyncio.ensure_future(answer(g, "abc", asked(clock), deltas))
            await soon(engine.submitted.wait())
            engine.step()
            await until(lambda: deltas)
            # The next wait is for what the deadline leaves now: nothing.
            clock.advance(3600)
            engine.step()
            with pytest.raises(errors.DeadlineExpired):
                await soon(work)
            assert g.admission.items == 0
        assert text_of(deltas) in ("a", "ab")
        assert engine.aborted == [1]
        assert engine.running == {}

    async def test_the_wait_ends_with_the_deadline_though_no_step_comes(self) -> None:
        engine = FakeEngine()
        with generator(engine) as g:
            now = asyncio.get_running_loop().time()
            with pytest.raises(errors.DeadlineExpired):
                await soon(answer(g, "abc", asked(n=2, deadline=Deadline(now + 0.05))))
            assert g.admission.items == 0
        assert engine.aborted == [1, 2]

    async def test_one_that_has_passed_gets_no_permit(self) -> None:
        engine, clock = FakeEngine(), FakeClock()
        with generator(engine, clock=clock) as g:
            with pytest.raises(errors.DeadlineExpired):
                await answer(g, "abc", asked(clock, deadline=Deadline(clock.now - 1)))
            assert (g.admission.items, g.admission.admitted) == (0, 0)
        assert not engine.submitted.is_set()


class TestCancellation:
    async def test_a_cancelled_consumer_aborts_every_choice(self) -> None:
        engine = FakeEngine()
        with generator(engine) as g:
            work = asyncio.ensure_future(answer(g, "abc", asked(n=3)))
            await until(lambda: len(engine.running) == 3)
            assert g.admission.items == 3
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await soon(work)
            assert g.admission.items == 0
        assert sorted(engine.aborted) == [1, 2, 3]
        assert engine.running == {}

    async def test_a_consumer_that_stops_reading_aborts(self) -> None:
        engine = FakeEngine()
        with generator(engine) as g:
            wants = asked()
            generation, sampling = await g.prepare(Prompt(text="abc"), wants)
            with g.admit(generation, sampling, wants) as permit:
                stream = g.stream(generation, sampling, wants, permit)
                first = await driven(engine, anext(stream))
                await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
        assert first.text == "a"
        assert engine.aborted == [1]

    async def test_what_was_said_before_is_in_the_generation(self) -> None:
        engine, deltas = FakeEngine(), list[Delta]()
        with generator(engine) as g:
            wants = asked()
            generation, sampling = await g.prepare(Prompt(text="abc"), wants)
            with g.admit(generation, sampling, wants) as permit:
                stream = g.stream(generation, sampling, wants, permit)
                deltas.append(await driven(engine, anext(stream)))
                await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
        assert only(generation).text.startswith(text_of(deltas))
        assert text_of(deltas) == "a"
        assert only(generation).finish is None


class TestMeasures:
    async def test_times_are_taken_from_the_arrival(self) -> None:
        clock = FakeClock()
        engine = FakeEngine()
        with generator(engine, clock=clock) as g:
            wants = asked(clock, max_tokens=3)
            clock.advance(1.0)
            deltas: list[Delta] = []
            work = asyncio.ensure_future(answer(g, "abcd", wants, deltas))
            await soon(engine.submitted.wait())
            for number, seconds in enumerate((2.0, 0.5, 0.5), 1):
                clock.advance(seconds)
                engine.step()
                await until(partial(lambda expected: len(deltas) == expected, number))
            generation = await soon(work)
        assert generation.queue_s == pytest.approx(1.0)
        assert generation.first_token_s == pytest.approx(3.0)
        assert generation.total_s == pytest.approx(4.0)
        assert generation.per_token_s == pytest.approx(0.5)

    async def test_tokens_and_refusals_are_counted_by_model(self) -> None:
        def counted(kind: str) -> float:
            return metric("gristmill_generator_tokens_total", model=NAME, kind=kind)

        before = counted("prompt"), counted("completion")
        engine = ScriptedEngine(script("abc"))
        with generator(engine) as g:
            await answer(g, "xy", asked(n=2))
        assert (counted("prompt") - before[0], counted("completion") - before[1]) == (2, 6)


class TestSlowReader:
    async def test_one_that_is_too_far_behind_is_cut_off_and_its_place_is_free(self) -> None:
        engine = FakeEngine()
        with generator(engine, max_unsent_tokens=8) as g:
            wants = asked()
            generation, sampling = await g.prepare(Prompt(text="x" * 40), wants)
            with g.admit(generation, sampling, wants) as permit:
                stream = g.stream(generation, sampling, wants, permit)
                first = asyncio.ensure_future(anext(stream))
                await soon(engine.submitted.wait())
                engine.step()
                assert (await soon(first)).text == "x"
                for _ in range(30):  # nobody reads
                    engine.step()
                    await asyncio.sleep(0)
                await until(lambda: engine.aborted)
                assert g.slots.running == 0
                left = (await soon(anext(stream))).text
                assert 8 <= len(left) < 12
                with pytest.raises(errors.SlowConsumer):
                    await soon(anext(stream))

    async def test_one_that_is_a_little_behind_gets_it_in_one_piece(self) -> None:
        engine = FakeEngine()
        with generator(engine) as g:
            wants = asked()
            generation, sampling = await g.prepare(Prompt(text="abcdef"), wants)
            with g.admit(generation, sampling, wants) as permit:
                stream = g.stream(generation, sampling, wants, permit)
                first = asyncio.ensure_future(anext(stream))
                await soon(engine.submitted.wait())
                engine.step()
                assert (await soon(first)).text == "a"
                for _ in range(5):
                    engine.step()
                await until(lambda: engine.changed.is_set())
                rest = await soon(anext(stream))
                assert (rest.text, rest.ids) == ("bcdef", tuple(ids("bcdef")))
                with pytest.raises(StopAsyncIteration):
                    await soon(anext(stream))

    async def test_messages_may_be_sent_at_most_so_often(self) -> None:
        engine = FakeEngine()
        deltas: list[Delta] = []
        with generator(engine, coalesce_s=0.03) as g:
            work = answer(g, "x" * 30, asked(), deltas)
            await driven(engine, work)
        assert text_of(deltas) == "x" * 30
        assert len(deltas) < 10


class TestPlaces:
    async def test_no_more_than_the_engine_runs_are_given_to_it(self) -> None:
        engine = FakeEngine()
        with generator(engine, max_running=2) as g:
            work = [asyncio.ensure_future(answer(g, "ab", asked())) for _ in range(5)]
            await until(lambda: g.slots.waiting == 3)
            assert len(engine.running) == 2
            await asyncio.gather(*[driven(engine, one) for one in work])
            assert g.slots.running == g.slots.waiting == 0

    async def test_one_who_asks_much_does_not_keep_the_others_out(self) -> None:
        engine = FakeEngine()
        ended: list[str] = []

        async def ask(g: Generator, who: str) -> None:
            await answer(g, "abcd", asked(identity=who))
            ended.append(who)

        with generator(engine, max_running=1) as g:
            work = [asyncio.ensure_future(ask(g, "much")) for _ in range(6)]
            await until(lambda: g.slots.waiting == 5)
            work.append(asyncio.ensure_future(ask(g, "little")))
            await until(lambda: g.slots.waiting == 6)
            await asyncio.gather(*[driven(engine, one) for one in work])
        assert ended.index("little") <= 1

    async def test_the_most_urgent_goes_first(self) -> None:
        engine = FakeEngine()
        ended: list[int] = []

        async def ask(g: Generator, priority: int) -> None:
            await answer(g, "abcd", asked(priority=priority))
            ended.append(priority)

        with generator(engine, max_running=1) as g:
            work = [asyncio.ensure_future(ask(g, 5))]
            await until(lambda: g.slots.running == 1)
            work += [asyncio.ensure_future(ask(g, priority)) for priority in (9, 5, 1)]
            await until(lambda: g.slots.waiting == 3)
            await asyncio.gather(*[driven(engine, one) for one in work])
        assert ended == [5, 1, 5, 9]

    async def test_leaving_the_queue_costs_the_engine_nothing(self) -> None:
        engine = FakeEngine()
        with generator(engine, max_running=1) as g:
            first = asyncio.ensure_future(answer(g, "ab", asked()))
            await until(lambda: g.slots.running == 1)
            second = asyncio.ensure_future(answer(g, "cd", asked()))
            await until(lambda: g.slots.waiting == 1)
            second.cancel()
            await until(lambda: g.slots.waiting == 0)
            await driven(engine, first)
            assert engine.aborted == []
