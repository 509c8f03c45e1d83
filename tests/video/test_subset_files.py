"""Subsets on disk: a folder a size and seed, the same whatever machine drew them, and one table over all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise

import polars as pl
import pytest

from egoscale.recipe import DesignSpec, SubsetRecipe
from egoscale.video.catalog import SCHEMA
from egoscale.video.subset import draw_subset
from egoscale.video.subset_files import read_summary, write_subsets


@pytest.fixture
def selection(tmp_path):
    """A selection of 600 clips in a file: 2 sources, 150 recordings, 24 people, 14 places."""
    rows = [
        (f"{('a', 'b')[r % 2]}/r{r:03d}/{c}", ("a", "b")[r % 2], f"r{r:03d}", f"p{r % 24}", f"s{r % 14}", 300.0 + r)
        for r in range(150)
        for c in range(4)
    ]
    columns = ["clip_id", "source", "recording_id", "participant_id", "scene_id", "duration_s"]
    table = pl.DataFrame(rows, schema=columns, orient="row")
    table = table.with_columns(pl.lit(None, kind).alias(name) for name, kind in SCHEMA.items() if name not in columns)
    table = table.select(*SCHEMA, selected=pl.col("duration_s") > 302, rule=pl.lit(None, pl.String))
    table = table.with_columns(task=pl.lit("sweep"), unique_s=pl.col("duration_s").round(1))
    path = tmp_path / "selection.parquet"
    table.sort("clip_id").write_parquet(path)
    return path


DESIGN = DesignSpec(name="fixed_epochs", epochs=2, batch_size=10, window_s=3.6)
RECIPE = SubsetRecipe(hours=1, stratify=("source", "scene_id"), design=DESIGN)


def test_folders_hold_what_is_drawn_one_at_a_time(selection, tmp_path):
    out = tmp_path / "subsets"
    said = []
    table = write_subsets(selection, RECIPE, out, hours=[2, 4.5], seeds=[0, 1], progress=lambda *at: said.append(at))
    names = ["2h-seed0", "2h-seed1", "4.5h-seed0", "4.5h-seed1"]
    assert table["folder"].to_list() == names == sorted(path.name for path in out.iterdir() if path.is_dir())
    assert [done for done, *_ in said] == [1, 2, 3, 4]
    for name, row in zip(names, table.iter_rows(named=True), strict=True):
        alone = draw_subset(selection, RECIPE.model_copy(update={"hours": row["hours_asked"], "seed": row["seed"]}))
        assert sorted(path.name for path in (out / name).iterdir()) == [
            "heldout.parquet",
            "manifest.parquet",
            "subset.json",
        ]
        assert pl.read_parquet(out / name / "manifest.parquet").equals(alone.manifest)
        assert pl.read_parquet(out / name / "heldout.parquet").equals(alone.heldout)
        summary = json.loads((out / name / "subset.json").read_text())
        assert summary == json.loads(json.dumps(alone.summary))
        assert summary["hash"] == row["hash"] and summary["num_tasks"] == 1
        unique, seen, epochs = (summary[key] for key in ("unique_hours", "hours_seen", "epochs"))
        assert (seen, epochs) == (2 * row["hours_asked"], seen / unique)
        assert row["hours_asked"] <= unique < row["hours_asked"] + 0.6 and unique != seen
    assert pl.read_csv(out / "subsets.csv")["hash"].equals(table["hash"])


def test_more_sizes_join_the_table_and_another_selection_does_not(selection, tmp_path):
    out = tmp_path / "subsets"
    first = write_subsets(selection, RECIPE, out, hours=[2], seeds=[0])
    both = write_subsets(selection, RECIPE, out, hours=[4], seeds=[0])
    assert both["folder"].to_list() == ["2h-seed0", "4h-seed0"]
    assert both["hash"][0] == first["hash"][0]
    before = (out / "2h-seed0" / "subset.json").read_bytes()
    with pytest.raises(ValueError, match=r"4h-seed0: drawn from another selection or with other held-out rules"):
        write_subsets(selection, RECIPE.model_copy(update={"holdout_seed": 1}), out, hours=[2, 3], seeds=[0])
    assert (out / "2h-seed0" / "subset.json").read_bytes() == before
    assert not (out / "3h-seed0").exists() and not list(out.rglob("*.part"))


def test_other_axes_have_folders_of_their_own(selection, tmp_path):
    recipe = RECIPE.model_copy(update={"axis": "scenes", "hours": 6.0, "min_group_hours": 1.0})
    table = write_subsets(selection, recipe, tmp_path / "out", groups=[3, 6], seeds=[2])
    assert table["folder"].to_list() == ["6h-3scenes-seed2", "6h-6scenes-seed2"]
    assert table["num_groups"].to_list() == table["num_scenes"].to_list() == [3, 6]
    assert (table["unique_hours"] - 6).abs().max() < 0.6


def test_what_is_asked_for_twice_is_drawn_once(selection, tmp_path):
    table = write_subsets(selection, RECIPE, tmp_path / "twice", hours=[2, 2.0, 3], seeds=[1, 1])
    assert table["folder"].to_list() == ["2h-seed1", "3h-seed1"]
    assert table.equals(write_subsets(selection, RECIPE, tmp_path / "once", hours=[2, 3], seeds=[1]))


def test_two_sizes_of_one_name_are_refused_before_anything_is_written(selection, tmp_path):
    done = write_subsets(selection, RECIPE, tmp_path / "out", hours=[2])
    with pytest.raises(ValueError, match="2h-seed0: two of the sizes have this folder"):
        write_subsets(selection, RECIPE, tmp_path / "out", hours=[2, 2 + 1e-13, 3])
    assert read_summary(tmp_path / "out" / "2h-seed0")["hash"] == done["hash"][0]
    assert not (tmp_path / "out" / "3h-seed0").exists() and not list((tmp_path / "out").rglob("*.part"))


def test_more_sizes_than_are_written_at_once(selection, tmp_path):
    sizes = [0.5 + 0.25 * k for k in range(10)]
    table = write_subsets(selection, RECIPE, tmp_path / "out", hours=sizes)
    assert table.height == 10 and table["unique_hours"].is_sorted()
    clips = [set(pl.read_parquet(tmp_path / "out" / f / "manifest.parquet")["clip_id"]) for f in table["folder"]]
    assert all(small <= large for small, large in pairwise(clips))


def test_a_selection_in_another_order_of_rows_gives_the_same_files(selection, tmp_path):
    shuffled = tmp_path / "shuffled.parquet"
    pl.read_parquet(selection).sample(fraction=1, shuffle=True, seed=1).write_parquet(shuffled, row_group_size=7)
    one, other = (write_subsets(file, RECIPE, tmp_path / file.stem, hours=[3]) for file in (selection, shuffled))
    assert one.equals(other)
    for name in ("manifest", "heldout"):
        tables = [
            pl.read_parquet(tmp_path / stem / "3h-seed0" / f"{name}.parquet") for stem in ("selection", "shuffled")
        ]
        assert tables[0].equals(tables[1])


@pytest.mark.parametrize("threads", ["1", "3"])
def test_another_number_of_threads_and_another_process_give_the_same(selection, tmp_path, threads):
    code = (
        "import sys; from pathlib import Path; from egoscale.recipe import SubsetRecipe;"
        "from egoscale.video.subset_files import write_subsets;"
        "recipe = SubsetRecipe.model_validate_json(sys.argv[1]);"
        "print(*write_subsets(Path(sys.argv[2]), recipe, Path(sys.argv[3]), [2, 4], [0, 1])['hash'])"
    )
    arguments = [RECIPE.model_dump_json(), str(selection), str(tmp_path / "other")]
    environment = {**os.environ, "POLARS_MAX_THREADS": threads, "PYTHONHASHSEED": threads}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    here = write_subsets(selection, RECIPE, tmp_path / "here", [2, 4], [0, 1])
    assert done.stdout.split() == here["hash"].to_list()
    for folder in here["folder"]:
        tables = [pl.read_parquet(tmp_path / side / folder / "manifest.parquet") for side in ("here", "other")]
        assert tables[0].equals(tables[1])


def test_too_few_hours_leave_nothing_behind(selection, tmp_path):
    with pytest.raises(ValueError, match="are there to train on"):
        write_subsets(selection, RECIPE, tmp_path / "out", hours=[2, 500])
    assert not (tmp_path / "out").exists()
