"""Models of a hub, at a commit, over the HTTP that the Hugging Face library speaks."""

from pathlib import Path

import pytest

from services.registry.sources import huggingface
from services.registry.sources.huggingface import HuggingFaceSource
from services.registry.sources.source import Listing
from services.runtime.errors import FailedPrecondition, NotFound, UpstreamUnavailable
from tests.unit.registry_sources.fetched import fetched, nothing
from tests.unit.registry_sources.hub import COMMIT, REPOSITORY, Hub, Seen

LARGE = "model.safetensors"


@pytest.fixture
def source(hub: Hub) -> HuggingFaceSource:
    """The source over the hub, without a token."""
    return HuggingFaceSource(hub.endpoint)


@pytest.fixture
async def listing(source: HuggingFaceSource) -> Listing:
    """What the hub tells of its repository."""
    return await source.list(REPOSITORY, COMMIT)


def at(listing: Listing, path: str) -> int:
    """The number of a file."""
    return [file.path for file in listing.files].index(path)


async def test_a_commit_is_listed_with_its_digests(hub: Hub, listing: Listing) -> None:
    files = {file.path: file for file in listing.files}
    assert sorted(files) == sorted(hub.files)
    large, small = files[LARGE], files["config.json"]
    assert large.size_bytes == len(hub.files[LARGE])
    assert large.sha256 is not None
    assert large.git_sha1 is None
    assert small.sha256 is None
    assert small.git_sha1 is not None
    assert listing.revision == COMMIT
    assert listing.facts == {"endpoint": hub.endpoint}


async def test_its_files_come(
    hub: Hub, source: HuggingFaceSource, listing: Listing, tmp_path: Path
) -> None:
    assert await fetched(source, listing, tmp_path / "got") == hub.files


async def test_no_token_is_sent_unless_one_is_configured(
    hub: Hub, source: HuggingFaceSource, listing: Listing, tmp_path: Path
) -> None:
    """The library would send that of whoever runs the registry."""
    await fetched(source, listing, tmp_path / "got")
    assert {seen.token for seen in hub.seen} == {""}


async def test_the_token_is_shown_to_the_hub_and_to_nobody_else(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_secret\n")
    hub.token = "hf_secret"
    source = HuggingFaceSource(hub.endpoint, tmp_path / "token")
    listing = await source.list(REPOSITORY, COMMIT)
    assert await fetched(source, listing, tmp_path / "got") == hub.files
    assert hub.cdn_tokens == [""]
    assert "hf_secret" not in listing.model_dump_json()


async def test_it_goes_on_where_the_target_ends(
    hub: Hub, source: HuggingFaceSource, listing: Listing, target: Path
) -> None:
    target.write_bytes(hub.files[LARGE][:1000])
    await source.fetch(listing, listing.files[at(listing, LARGE)], target, nothing)
    assert target.read_bytes() == hub.files[LARGE]
    assert hub.seen == [Seen(LARGE, 1000, len(hub.files[LARGE]) - 1000)]


async def test_a_cut_connection_may_pass_and_keeps_what_came(
    hub: Hub, source: HuggingFaceSource, listing: Listing, target: Path
) -> None:
    hub.cuts[LARGE] = [300_000]
    file, told = listing.files[at(listing, LARGE)], []
    with pytest.raises(UpstreamUnavailable):
        await source.fetch(listing, file, target, told.append)
    here = target.stat().st_size
    assert 0 < here <= 300_000
    assert told[-1] == here
    await source.fetch(listing, file, target, nothing)
    assert target.read_bytes() == hub.files[LARGE]
    assert hub.seen[-1].start == here


async def test_a_hub_without_ranges_begins_anew(
    hub: Hub, source: HuggingFaceSource, listing: Listing, target: Path
) -> None:
    hub.ranges = False
    target.write_bytes(b"x" * 1000)
    await source.fetch(listing, listing.files[at(listing, LARGE)], target, nothing)
    assert target.read_bytes() == hub.files[LARGE]


async def test_large_files_come_in_several_ranges(
    hub: Hub,
    source: HuggingFaceSource,
    listing: Listing,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface, "RANGE_BYTES", 400_000)
    await source.fetch(listing, listing.files[at(listing, LARGE)], target, nothing)
    assert target.read_bytes() == hub.files[LARGE]
    assert [seen.start for seen in hub.seen] == [0, 400_000, 800_000]


async def test_more_bytes_than_were_listed_are_refused(
    hub: Hub, source: HuggingFaceSource, listing: Listing, target: Path
) -> None:
    hub.ranges = False
    hub.served["config.json"] = b"x" * 10_000_000
    with pytest.raises(FailedPrecondition, match="changed"):
        await source.fetch(listing, listing.files[at(listing, "config.json")], target, nothing)
    assert target.stat().st_size < 100


@pytest.mark.parametrize(
    ("repository", "commit", "what"),
    [("acme/other", COMMIT, "no acme/other"), (REPOSITORY, "f" * 40, "no such commit")],
)
async def test_what_the_hub_does_not_have_is_not_found(
    source: HuggingFaceSource, repository: str, commit: str, what: str
) -> None:
    with pytest.raises(NotFound, match=what):
        await source.list(repository, commit)


async def test_a_file_that_is_gone_is_not_found(
    hub: Hub, source: HuggingFaceSource, listing: Listing, target: Path
) -> None:
    del hub.files["config.json"]
    with pytest.raises(NotFound, match=r"config\.json"):
        await source.fetch(listing, listing.files[at(listing, "config.json")], target, nothing)


async def test_a_private_repository_is_not_found_without_a_token(hub: Hub) -> None:
    hub.token = "hf_secret"
    with pytest.raises(NotFound, match="token may not see it"):
        await HuggingFaceSource(hub.endpoint).list(REPOSITORY, COMMIT)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_token_that_is_refused_is_never_told(
    hub: Hub, listing: Listing, target: Path, tmp_path: Path, status: int
) -> None:
    (tmp_path / "token").write_text("hf_wrong")
    hub.status = [status]
    source = HuggingFaceSource(hub.endpoint, tmp_path / "token")
    with pytest.raises(FailedPrecondition, match="refused the registry's token") as refused:
        await source.fetch(listing, listing.files[at(listing, "config.json")], target, nothing)
    assert "hf_wrong" not in refused.value.message
    assert hub.endpoint not in refused.value.message


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
async def test_what_may_pass_is_unavailable(
    hub: Hub, source: HuggingFaceSource, status: int
) -> None:
    hub.status = [status]
    with pytest.raises(UpstreamUnavailable, match=str(status)):
        await source.list(REPOSITORY, COMMIT)


async def test_any_other_refusal_stays(hub: Hub, source: HuggingFaceSource) -> None:
    hub.status = [451]
    with pytest.raises(FailedPrecondition, match="451"):
        await source.list(REPOSITORY, COMMIT)


async def test_a_hub_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(UpstreamUnavailable, match="could not be reached"):
        await HuggingFaceSource("http://127.0.0.1:9").list(REPOSITORY, COMMIT)


async def test_a_token_file_that_cannot_be_read_is_not_named(tmp_path: Path) -> None:
    source = HuggingFaceSource("http://127.0.0.1:9", tmp_path / "nothing")
    with pytest.raises(FailedPrecondition, match="token file") as refused:
        await source.list(REPOSITORY, COMMIT)
    assert str(tmp_path) not in refused.value.message


async def test_an_answer_that_is_none_is_unavailable(source: HuggingFaceSource, hub: Hub) -> None:
    hub.status = [200]
    with pytest.raises(UpstreamUnavailable):
        await source.list(REPOSITORY, COMMIT)


async def test_an_empty_token_file_is_no_token(
    hub: Hub, listing: Listing, target: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("\n")
    source = HuggingFaceSource(hub.endpoint, tmp_path / "token")
    await source.fetch(listing, listing.files[at(listing, "config.json")], target, nothing)
    assert [seen.token for seen in hub.seen] == [""]
