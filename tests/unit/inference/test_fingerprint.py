"""A fingerprint is equal where a model runs in the same way, and differs where it does not."""

import subprocess
import sys
from pathlib import Path

import pytest

from services.inference import fingerprint as module
from services.inference import nvml
from services.inference.backends.fake import FakeBackend
from services.inference.fingerprint import cores, cpu_name, fingerprint, gpu_name

ELSEWHERE = """
from services.inference.backends.fake import FakeBackend
from services.inference.fingerprint import fingerprint
print(fingerprint(FakeBackend(), 2))
"""


class _Wider(FakeBackend):
    threads = 4


class _Newer(FakeBackend):
    version = "2"


def test_another_process_has_the_same() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ran.stdout == fingerprint(FakeBackend(), 2) + "\n"


def test_it_is_one_line_that_names_what_matters() -> None:
    found = fingerprint(FakeBackend(), 2)
    assert "\n" not in found
    assert found.startswith(f"cpu; {cpu_name()}; ")
    assert found.endswith("2 x 1 threads; fake 1")


def test_what_changes_the_times_changes_it() -> None:
    others = [fingerprint(FakeBackend(), 1), fingerprint(_Wider(), 2), fingerprint(_Newer(), 2)]
    assert len({fingerprint(FakeBackend(), 2), *others}) == 4


def test_quotas_of_all_control_groups_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CGROUPS", tmp_path)
    free = cores()
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cores() == free
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert cores() == 0.5


def test_a_processor_that_is_not_told_is_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "none")
    assert cpu_name()
    (tmp_path / "cpuinfo").write_text("vendor_id : x\nmodel name\t: A  Fast   One\n")
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
    assert cpu_name() == "A Fast One"


def test_a_device_without_its_driver_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "libno-such-driver.so.1")
    assert gpu_name("cuda:0") == "unknown"
