"""The commands of `python -m models` do what their help says and end with a fitting status."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.__main__ import main, models_folder


def test_build_then_list_then_build_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "iris", "--cache", str(tmp_path)]) == 0
    assert f"iris: built: {tmp_path / 'models' / 'iris'}" in capsys.readouterr().out
    assert main(["list", "--cache", str(tmp_path)]) == 0
    states = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert states == {"sentiment": "-", "iris": "built", "smollm2": "-"}
    assert main(["build", "iris", "--verify", "--cache", str(tmp_path)]) == 0
    assert "up to date" in capsys.readouterr().out


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["build", "absent", "--cache", str(tmp_path)])


def test_a_source_without_the_file_ends_in_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "smollm2", "--source", str(tmp_path), "--cache", str(tmp_path)]) == 1
    assert "SmolLM2-135M-Instruct.Q4_1.gguf" in capsys.readouterr().err
    assert not (tmp_path / "models" / "smollm2").exists()


def test_evaluate_wants_a_built_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "sentiment", "--cache", str(tmp_path)]) == 1
    assert "python -m models build sentiment" in capsys.readouterr().err


def test_the_cache_is_the_option_then_the_variable_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRISTMILL_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert models_folder(None) == tmp_path / "home" / ".cache" / "gristmill" / "models"
    monkeypatch.setenv("GRISTMILL_CACHE", str(tmp_path / "variable"))
    assert models_folder(None) == tmp_path / "variable" / "models"
    assert models_folder(tmp_path / "option") == tmp_path / "option" / "models"
