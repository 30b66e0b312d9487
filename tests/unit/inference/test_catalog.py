"""The follower's catalog: what changes do to it, what is wanted, and that JSON keeps it whole."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from services.runtime.catalog import ArtifactEntry, Catalog, ModelEntry, VersionEntry

NAMES = st.text("abc.-_", min_size=1, max_size=4)
ARTIFACTS = st.builds(
    ArtifactEntry, path=st.text(max_size=9), size_bytes=st.integers(0, 2**40), sha256=NAMES
)


@st.composite
def catalogs(draw: st.DrawFn) -> Catalog:
    """Any catalog that changes can make."""
    catalog = Catalog(draw(st.one_of(st.none(), st.integers(0, 2**60))))
    for name in draw(st.sets(NAMES, max_size=4)):
        task = draw(st.sampled_from(["classification", "generation"]))
        catalog.set_model(name, task, archived=draw(st.booleans()))
        for number in draw(st.sets(st.integers(1, 2**31), max_size=3)):
            artifacts = tuple(draw(st.lists(ARTIFACTS, max_size=2)))
            entry = VersionEntry(name, number, draw(NAMES), artifacts)
            catalog.set_version(entry, servable=True)
        for alias in draw(st.sets(st.sampled_from(["live", "canary"]))):
            catalog.set_alias(name, alias, draw(st.integers(1, 2**31)))
    return catalog


def version(model: str, number: int) -> VersionEntry:
    """A version without files."""
    return VersionEntry(model, number, "digest", ())


@given(catalogs())
@settings(max_examples=40, deadline=None)
def test_json_keeps_a_catalog_whole(catalog: Catalog) -> None:
    assert Catalog.from_json(json.loads(json.dumps(catalog.to_json()))) == catalog


def test_changes_of_a_model_keep_its_versions_and_aliases() -> None:
    catalog = Catalog()
    catalog.set_model("m", "classification", archived=False)
    catalog.set_version(version("m", 1), servable=True)
    catalog.set_alias("m", "live", 1)
    catalog.set_model("m", "generation", archived=True)
    expected = ModelEntry("generation", True, {1: version("m", 1)}, {"live": 1})
    assert catalog.models == {"m": expected}


def test_a_version_that_is_no_longer_servable_goes() -> None:
    catalog = Catalog()
    catalog.set_model("m", "classification", archived=False)
    catalog.set_version(version("m", 1), servable=True)
    catalog.set_version(version("m", 1), servable=False)
    catalog.set_version(version("m", 2), servable=False)
    assert catalog.models["m"].versions == {}


def test_an_alias_moves_and_goes() -> None:
    catalog = Catalog()
    catalog.set_model("m", "classification", archived=False)
    catalog.set_alias("m", "live", 1)
    catalog.set_alias("m", "live", 2)
    assert catalog.models["m"].aliases == {"live": 2}
    for _ in range(2):
        catalog.set_alias("m", "live", None)
        assert catalog.models["m"].aliases == {}


def test_what_belongs_to_no_model_is_no_matter() -> None:
    catalog = Catalog()
    catalog.set_version(version("gone", 1), servable=True)
    catalog.set_alias("gone", "live", 1)
    catalog.set_alias("gone", "live", None)
    catalog.remove_model("gone")
    assert catalog.models == {}


@given(catalogs(), st.frozensets(NAMES, max_size=3))
@settings(max_examples=40, deadline=None)
def test_wanted_is_of_the_task_alive_and_live_or_listed(
    catalog: Catalog, only: frozenset[str]
) -> None:
    wanted = catalog.wanted("classification", only)
    for name, entry in catalog.models.items():
        served = entry.task == "classification" and not entry.archived
        served = served and (name in only if only else "live" in entry.aliases)
        assert (name in wanted) == served
        assert wanted.get(name, entry) is entry
