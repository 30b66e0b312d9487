"""What must be refused is: by the right rule, with words that say what to do, and soon."""

import time
from pathlib import Path

import pytest

from services.registry.checks import Policy, Report, check
from tests.unit.registry_checks.corpus import write
from tests.unit.registry_checks.evil import EVIL, Evil

SOON_S = 15.0


def checked(folder: Path, evil: Evil, task: str = "classification") -> Report:
    """The report on these files."""
    paths = write(folder, evil.files)
    return check(folder, paths, "m", task, Policy(allow_pickle=evil.allow_pickle))


@pytest.mark.parametrize("name", EVIL)
def test_it_is_refused(name: str, tmp_path: Path) -> None:
    evil = EVIL[name]
    began = time.monotonic()
    report = checked(tmp_path, evil)
    took = time.monotonic() - began
    found = [(r.path, r.rule) for r in report.rejections]
    assert (evil.path, evil.rule) in found, report.rejections
    messages = [r.message for r in report.rejections if (r.path, r.rule) == (evil.path, evil.rule)]
    assert any(evil.says in message for message in messages), messages
    assert took < SOON_S


@pytest.mark.parametrize("name", EVIL)
def test_a_message_is_short_and_tells_nothing_of_the_server(name: str, tmp_path: Path) -> None:
    for rejection in checked(tmp_path, EVIL[name]).rejections:
        assert rejection.message
        assert len(rejection.message.encode()) <= 500
        assert rejection.message.isprintable()
        assert str(tmp_path) not in rejection.message
        assert "site-packages" not in rejection.message
        assert rejection.rule == rejection.rule.lower()
