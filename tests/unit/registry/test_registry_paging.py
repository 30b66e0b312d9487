"""Pages: sizes, tokens that this server gave and others, entries that come and go between pages."""

import base64
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.registry import paging
from services.registry.listing import asked
from services.runtime.errors import InvalidRequest
from tests.unit.registry.parts import Parts, artifact, by


@pytest.mark.parametrize(
    ("asked", "given"), [(0, 50), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)]
)
def test_a_page_is_as_large_as_asked_up_to_a_thousand(asked: int, given: int) -> None:
    assert paging.size(asked) == given


@pytest.mark.parametrize("size", [-1, -(2**31)])
def test_no_page_is_smaller_than_nothing(size: int) -> None:
    with pytest.raises(InvalidRequest, match="page_size"):
        paging.size(size)


@given(st.lists(st.text(min_size=1), unique=True), st.integers(1, 10))
def test_pages_together_are_the_whole_list_in_order(keys: list[str], size: int) -> None:
    keys.sort()
    found: list[str] = []
    token = ""
    for _ in range(len(keys) + 1):
        after = paging.after(token)
        left = [key for key in keys if not token or key > after]
        page, token = paging.cut(left[: size + 1], size, str)
        assert len(page) <= size
        found += page
        if not token:
            break
    assert found == keys


def test_a_page_that_is_exactly_full_is_the_last() -> None:
    assert paging.cut(["a", "b"], 2, str) == (["a", "b"], "")


@pytest.mark.parametrize(
    "token",
    [
        "!!!!",
        "a",
        "====",
        "YQ==\n",
        "YQ",
        "Y Q==",
        "é",
        "a\0",
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    ],
)
def test_a_token_of_someone_elses_making_is_refused(token: str) -> None:
    for read in (paging.after, paging.before):
        with pytest.raises(InvalidRequest, match="page_token"):
            read(token)


@pytest.mark.parametrize("key", ["", "x", "-1", "1.5", "9" * 19, "1e3"])
def test_a_token_of_another_list_is_no_number(key: str) -> None:
    token = base64.urlsafe_b64encode(key.encode()).decode()
    if token:
        with pytest.raises(InvalidRequest):
            paging.before(token)


async def _models(parts: Parts, size: int, disturb: object = None) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        page = await parts.store.models(asked("models", size, token, "", ""))
        token = page.next_page_token
        found += [record.id for record in page.entries]
        if callable(disturb):
            await disturb()
        if not token:
            return found


async def test_what_is_there_throughout_is_shown_once_while_others_come_and_go(
    parts: Parts,
) -> None:
    rng = random.Random(7)
    stay = [f"stay-{n:02}" for n in range(12)]
    for name in stay:
        await parts.model(name)
    passing = [f"{rng.choice(['a', 'stay-05', 'stay-1', 'z'])}.{n}" for n in range(30)]
    there: list[str] = []

    async def disturb() -> None:
        for _ in range(rng.randrange(3)):
            if there and rng.random() < 0.5:
                gone = there.pop(rng.randrange(len(there)))
                await parts.models.delete_model(by(), f"models/{gone}", "", force=False, dry=False)
            elif passing:
                there.append(passing.pop())
                await parts.model(there[-1])

    found = await _models(parts, 3, disturb)
    assert [name for name in found if name in stay] == stay
    assert found == sorted(set(found))


async def test_a_token_goes_on_after_the_entry_it_names_is_gone(parts: Parts) -> None:
    for name in "abcd":
        await parts.model(name)
    page = await parts.store.models(asked("models", 2, "", "", ""))
    assert [record.id for record in page.entries] == ["a", "b"]
    await parts.models.delete_model(by(), "models/b", "", force=False, dry=False)
    rest = await parts.store.models(asked("models", 10, page.next_page_token, "", ""))
    assert [record.id for record in rest.entries] == ["c", "d"]
    assert rest.next_page_token == ""


async def test_versions_come_newest_first_and_new_ones_do_not_shift_the_pages(
    parts: Parts,
) -> None:
    await parts.model("m")
    made = [artifact("a", b"x")]

    async def another() -> None:
        await parts.models.create_version(by(), "m", made, "", {}, {}, None, dry=False)

    for _ in range(5):
        await another()
    found: list[int] = []
    token = ""
    while True:
        page = await parts.store.versions("m", asked("versions", 2, token, "", ""))
        token = page.next_page_token
        found += [record.version for record in page.entries]
        await another()
        if not token:
            break
    assert found == [5, 4, 3, 2, 1]


async def test_the_history_pages_backwards_and_ignores_what_happens_meanwhile(
    parts: Parts,
) -> None:
    await parts.model("m")
    await parts.model("other")
    for number in range(5):
        await parts.models.update_model(
            by(), "models/m", "", {"description": str(number)}, dry=False
        )
    found: list[str] = []
    token = ""
    while True:
        records = await parts.store.history("m", paging.before(token), 3)
        page, token = paging.cut(records, 2, lambda record: str(record.revision))
        found += [getattr(record.after, "description", "") for record in page]
        await parts.models.update_model(by(), "models/m", "", {"description": "new"}, dry=False)
        if not token:
            break
    assert found == ["4", "3", "2", "1", "0", ""]
