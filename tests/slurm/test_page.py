"""Every command of `docs/slurm.md` is run on a real Slurm of four nodes, from a clone to a law."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "slurm.md"
pytestmark = [pytest.mark.slurm, pytest.mark.sim, pytest.mark.slow, pytest.mark.timeout(1200)]


def of(page, beginning: str) -> str:
    """What a command printed, by how it begins."""
    (text,) = (text for command, (_, text) in page.said.items() if command.startswith(beginning))
    return text


def test_every_command_does_what_it_says(page):
    print(f"{page.seconds:.0f} s")
    assert len(page.said) > 12
    for command, (code, text) in page.said.items():
        assert code == 0 or (command == "egoscale sweep status sweeps/tabletop" and code == 1), f"{command}\n{text}"
        assert "Traceback" not in text, text


def test_the_cluster_is_looked_at_before_anything_is_sent(page):
    said = of(page, "egoscale doctor --profile")
    assert "[resources.two-nodes]" in said and "see the same" in said and "bad" not in said
    names = [command.split()[1:3] for command in page.said if command.startswith("egoscale")]
    assert names.index(["doctor", "--profile"]) < names.index(["sweep", "plan"]) < names.index(["sweep", "submit"])


def test_one_submission_leads_to_a_table_and_a_report(page):
    assert re.search(r"\b21 runs sent in \d+ arrays", of(page, "egoscale sweep submit"))
    assert "● done 21" in of(page, "egoscale sweep status sweeps/tabletop --watch")
    table = pl.read_csv(page.folder / "table.csv")
    assert table.height == 3 and table["state"].to_list() == ["done"] * 3 and table["trials"].to_list() == [24] * 3
    assert (page.folder / "runs" / "report" / "tabletop" / "report.html").is_file()
    assert "report: " in of(page, "egoscale report")


def test_the_last_job_fits_the_law(page):
    (log,) = (page.folder / "runs" / "sweeps" / "tabletop" / "slurm").glob("*conclusion*.log")
    law = json.loads((page.folder / "runs" / "report" / "tabletop" / "fit.json").read_text())
    assert law["sentence"] in log.read_text() and "missing" not in log.read_text()
    assert str(log) in of(page, "egoscale sweep submit")
    assert of(page, "egoscale sweep logs sweeps/tabletop conclusion").startswith("conclusion: 1 sent")


def test_a_finished_study_has_nothing_to_repeat(page):
    assert "evaluate" not in of(page, "egoscale sweep retry")
    # All runs have ended; the job that fits the law may be at it still.
    assert re.search("^0 runs cancelled", of(page, "egoscale sweep cancel"))
    logs = of(page, "egoscale sweep logs sweeps/tabletop encode/")
    assert "encode/" in logs and ": done" in logs


def test_files_and_keys_that_the_page_names_are_there():
    text = PAGE.read_text()
    for name in re.findall(r"`((?:slurm|tests)/[\w./-]+)`", text):
        assert (PAGE.parents[1] / name).exists(), name
    assert len(text.splitlines()) < 140, "one page"
