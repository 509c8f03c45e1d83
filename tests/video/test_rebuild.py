"""A catalogue is built again: nothing that was found of other files counts, and no two processes build at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

import polars as pl
import pytest

from egoscale.recipe import SelectRecipe, SourceSpec
from egoscale.video.catalog import build_catalog
from egoscale.video.scorers import probe_catalog, score_catalog
from egoscale.video.scores import open_catalog
from egoscale.video.select import select_clips


@pytest.fixture
def lab(write_video, numbered, tmp_path):
    """Three recordings and a broken one."""
    for name in ("a.mp4", "b.mp4", "inner/c.mp4"):
        write_video(f"lab/{name}", numbered(10 + len(name)))
    (tmp_path / "lab" / "broken.mp4").write_bytes(b"\0" * 500)
    return tmp_path / "lab"


@pytest.fixture
def decoded(monkeypatch):
    """How many clips each build has decoded."""
    counts = []

    def probe(*given, **named):
        done = probe_catalog(*given, **named)
        counts.append(done.done_now)
        return done

    monkeypatch.setattr("egoscale.video.catalog.probe_catalog", probe)
    return counts


BUILD = """
import sys
from pathlib import Path
from egoscale.recipe import SourceSpec
from egoscale.video.catalog import write_catalog

if __name__ == "__main__":
    write_catalog([SourceSpec(path=sys.argv[1], name="lab")], Path(sys.argv[2]))
"""


def test_a_catalogue_that_another_process_builds_is_left_alone(shared, lab, tmp_path):
    """The first keeps its rows and what it has decoded; the second is told whom it has to wait for."""
    clips, out = tmp_path / "clips", tmp_path / "out"
    clips.mkdir()
    for name in ("order_error_0", "order_error_1", "order_error_2", "order_error_3"):
        shutil.copy(shared / "ego" / "captaincook4d" / f"{name}.mp4", clips)
    (tmp_path / "build.py").write_text(BUILD)
    process = subprocess.Popen([sys.executable, str(tmp_path / "build.py"), str(clips), str(out)])
    while not list(out.rglob("*.notes.jsonl")) and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None
    for probe in ("decode", "none"):
        said = rf"catalog\.parquet: process {process.pid} on .* builds this catalogue; wait for it"
        with pytest.raises(BlockingIOError, match=said):
            build_catalog([SourceSpec(path=str(lab))], out, probe=probe)
    assert process.wait() == 0
    assert len(pl.read_parquet(out / "catalog.parquet").filter("usable")) == 4
    assert sorted(path.name for path in out.iterdir()) == ["catalog.decoded.scores", "catalog.parquet"]


def test_a_lock_that_a_killed_build_left_holds_nobody(lab, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "catalog.building.lock").write_text("process 7 on another, which was killed long ago")
    assert build_catalog([SourceSpec(path=str(lab))], tmp_path / "out").height == 4
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["catalog.decoded.scores", "catalog.parquet"]


def test_a_build_is_believed_more_than_an_earlier_probe(lab, tmp_path):
    source, file = [SourceSpec(path=str(lab))], tmp_path / "catalog.parquet"
    (lab / "b.mp4").rename(tmp_path / "whole.mp4")
    (lab / "b.mp4").touch()
    build_catalog(source, file, probe="none")
    probe_catalog(file)
    row = pl.col("clip_id") == "lab/b.mp4"
    assert open_catalog(file).filter(row).collect()["reason"].to_list() == ["the file is empty (0 bytes)"]
    (tmp_path / "whole.mp4").replace(lab / "b.mp4")
    built = build_catalog(source, file)
    assert built.filter(row)["usable"].to_list() == [True] and open_catalog(file).collect().equals(built)
    assert not list(file.with_suffix(".scores").iterdir())


def test_scores_of_a_file_that_is_another_now_do_not_count(lab, write_video, numbered, tmp_path):
    source, file = [SourceSpec(path=str(lab))], tmp_path / "catalog.parquet"
    build_catalog(source, file)
    score_catalog(file)
    assert select_clips(open_catalog(file), SelectRecipe())[1]["notes"] == []
    write_video("lab/a.mp4", numbered(30))
    build_catalog(source, file)
    recipe = SelectRecipe.model_validate({"scores": {"sharpness": {"min": 0.0}}})
    selection, ledger = select_clips(open_catalog(file), recipe)
    assert selection.filter(pl.col("sharpness").is_null())["clip_id"].to_list() == ["lab/a.mp4", "lab/broken.mp4"]
    assert ledger["not_scored"]["min_sharpness"]["clips"] == 1
    (note,) = ledger["notes"]
    assert note.startswith("1 clips have scores made of other bytes") and "`egoscale catalog score`" in note
    assert score_catalog(file).done_now == 1
    selection, ledger = select_clips(open_catalog(file), recipe)
    assert selection["sharpness"].is_not_null().sum() == 3 and ledger["notes"] == []


def test_another_build_decodes_what_is_new_or_changed_and_tries_again_what_failed(
    lab, write_video, numbered, tmp_path, decoded
):
    source, file = [SourceSpec(path=str(lab))], tmp_path / "catalog.parquet"
    first = build_catalog(source, file)
    assert build_catalog(source, file).equals(first)
    assert decoded == [4, 1], "only the broken one is tried again"
    write_video("lab/d.mp4", numbered(12))
    write_video("lab/a.mp4", numbered(30))
    (lab / "b.mp4").unlink()
    write_video("lab/broken.mp4", numbered(9))
    grown = build_catalog(source, file)
    assert decoded[2:] == [3] and grown["usable"].all() and "lab/b.mp4" not in grown["clip_id"]
    shutil.rmtree(tmp_path / "catalog.decoded.scores")
    assert build_catalog(source, file).equals(grown) and decoded[3:] == [4]


def test_a_killed_build_goes_on_and_does_not_try_again_what_it_has_seen_to_fail(lab, tmp_path, decoded, monkeypatch):
    source, file = [SourceSpec(path=str(lab))], tmp_path / "catalog.parquet"

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pl.LazyFrame, "sink_parquet", _fail_at(file.name, pl.LazyFrame.sink_parquet))
        build_catalog(source, file)
    assert not file.exists() and decoded == [4]
    assert build_catalog(source, file).height == 4 and decoded == [4, 0]


def _fail_at(name, sink):
    def sunk(self, target, *given, **named):
        if str(target).endswith(f"{name}.part") and "decoded" not in str(target):
            raise KeyboardInterrupt
        return sink(self, target, *given, **named)

    return sunk


def test_data_that_grow_are_listed_anew_and_only_new_and_changed_files_are_probed(lab, write_video, numbered, tmp_path):
    source, file = [SourceSpec(path=str(lab))], tmp_path / "catalog.parquet"
    build_catalog(source, file, probe="none")
    assert probe_catalog(file).done_now == 4
    build_catalog(source, file, probe="none")
    assert probe_catalog(file).done_now == 0
    write_video("lab/d.mp4", numbered(12))
    write_video("lab/a.mp4", numbered(30))
    build_catalog(source, file, probe="none")
    assert (probe_catalog(file).done_now, probe_catalog(file).done_now) == (2, 0)
    found = open_catalog(file).collect()
    assert found.equals(build_catalog(source, tmp_path / "fresh.parquet"))
