"""Definitions are found where a user would look for them, and copied out without harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from egoscale.resources import KINDS, copy_share, find, names


def test_a_path_wins_then_the_working_directory_then_what_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = find("recipes", "sweeps/tabletop")
    assert shipped.is_absolute()
    mine = tmp_path / "recipes/sweeps/tabletop.toml"
    mine.parent.mkdir(parents=True)
    mine.write_text("")
    assert find("recipes", "sweeps/tabletop").resolve() == mine
    given = tmp_path / "given.toml"
    given.write_text("")
    assert find("recipes", given) == given


def test_a_study_is_named_by_its_folder() -> None:
    assert find("analysis", "tabletop").name == "study.toml"


def test_a_missing_name_lists_near_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"did you mean sweeps/tabletop\.toml"):
        find("recipes", "sweeps/tabeltop")


def test_copies_are_whole_and_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "recipes/sweeps/tabletop.toml"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    written = copy_share(tmp_path)
    assert kept.read_text() == "mine"
    assert kept not in written
    monkeypatch.chdir(tmp_path)
    for kind in KINDS:
        for name in names(kind):
            assert (tmp_path / kind / name).is_file()
    assert copy_share(tmp_path) == []
