"""`egoscale fit` and `egoscale ask` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from egoscale.cli import main

STUDY = """
name = "mine"
title = "Mine"
question = "How much does video buy?"
table = "runs.csv"
x = [{ column = "hours", unit = "hours" }, { column = "demos", unit = "demos" }]
run = ["hours", "seed"]
laws = ["logit-log-hours", "power"]
loss = { column = "loss", unit = "nats" }
forecasts = [16.0]
prices = { size = 100.0, second = 2.0, run = 50.0, currency = "EUR" }
"""


def table(sizes: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)) -> pl.DataFrame:
    rows = [
        {
            "hours": hours, "demos": demos, "seed": seed, "trials": 100, "loss": hours**-0.2 * (1 + 0.01 * seed),
            "successes": round(100 / (1 + 2.718 ** (1.5 - 0.6 * (k + 0.2 * seed) - 0.01 * demos))),
        }
        for k, hours in enumerate(sizes) for seed in (0, 1, 2) for demos in (20, 80)
    ]  # fmt: skip
    return pl.DataFrame(rows)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "study.toml").write_text(STUDY)
    table().write_csv(tmp_path / "runs.csv")
    return tmp_path / "study.toml"


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    return int(stopped.value.code or 0)


def test_a_partial_table_is_called_so(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = ["done"] * 27 + ["failed", "new", "new"]
    missing = pl.col("state") != "done"
    rows = table().with_columns(state=pl.Series(states))
    rows = rows.with_columns(pl.when(~missing).then(column).alias(column) for column in ("successes", "trials", "loss"))
    rows.write_csv(study.parent / "runs.csv")
    assert code_of("fit", str(study), "--no-figures") == 0
    said = capsys.readouterr().out
    assert "The table is partial: 3 of 30 rows are not done (2 new, 1 failed)." in said
    assert "W_PARTIAL" in said and "3 of 30 cells of the grid are missing" in said
    assert code_of("ask", "hours", str(study), "--target", "0.9", "--second", "50") == 0
    assert "The table is partial" in capsys.readouterr().out
    rows = table().with_columns(state=pl.Series(["done"] * 26 + ["partial"] * 2 + ["stale", None]))  # trials record
    rows.write_csv(study.parent / "runs.csv")
    assert code_of("fit", str(study), "--no-figures") == 0
    said = capsys.readouterr().out
    assert "The table is partial: 4 of 30 rows are not done (2 partial, 1 stale, 1 unknown)." in said
    table().with_columns(state=pl.lit("CA")).write_csv(study.parent / "runs.csv")  # a column of another meaning
    assert code_of("fit", str(study), "--no-figures") == 0
    assert "The table is partial" not in capsys.readouterr().out


def test_fit_reads_the_table_beside_the_study_and_writes_beside_it(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("fit", str(study), "--no-figures") == 0
    said = capsys.readouterr().out
    assert "Each doubling of the hours of video multiplies the odds of success" in said
    assert "through the loss: Lowering the held-out loss by a tenth" in said
    document = json.loads((study.parent / "fit" / "fit.json").read_text())
    assert document["law"] == "logit-log-hours" and document["n_sizes"] == 5 and document["n_runs"] == 15
    assert document["formula"] == "logit p = a + b ln(hours) + c ln(demos)"
    assert [other["law"] for other in document["others"]] == ["power"]
    assert document["forecasts"][0]["times_largest"] == 2.0 and document["chained"][0]["forecasts"]
    for name, parameter in document["parameters"].items():
        low, high = parameter["ci95"]
        assert low < parameter["estimate"] < high, name


def test_fit_changes_keys_and_puts_the_json_where_told(study: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "law.json"
    words = ["fit", str(study), "--json", str(target), "--no-figures", "--set", 'laws=["power"]']
    assert code_of(*words) == 0
    assert json.loads(target.read_text())["law"] == "power"
    assert not (study.parent / "fit").exists()


def test_refused_fit_exits_2_and_writes_why(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(sizes=(1.0, 2.0)).write_csv(study.parent / "runs.csv")
    assert code_of("fit", str(study), "--no-figures") == 2
    document = json.loads((study.parent / "fit" / "fit.json").read_text())
    assert document["refused"]["code"] == "E_SIZES" and "E_SIZES" in capsys.readouterr().out
    assert document["parameters"] == {}


def test_fit_writes_figures_and_one_page(study: Path) -> None:
    assert code_of("fit", str(study)) == 0
    names = {path.name for path in (study.parent / "fit").iterdir()}
    assert {"fit.json", "fit.html", "success.svg", "success.pdf", "success.png", "loss.svg"} <= names


def test_study_without_a_table_says_how_to_give_one(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study.write_text(STUDY.replace('table = "runs.csv"\n', ""))
    assert code_of("fit", str(study)) == 2
    assert "--table" in capsys.readouterr().err


def test_ask_hours_gives_a_set_and_a_cost(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("ask", "hours", str(study), "--target", "0.6", "--second", "20") == 0
    said = capsys.readouterr().out
    assert "h for 0.6" in said and "Not ruled out at 95 %" in said and "EUR" in said
    assert code_of("ask", "hours", str(study), "--target", "0.6", "--gain", "0.1") == 2
    assert "one of them" in capsys.readouterr().err


def test_ask_next_ranks_by_cost(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("ask", "next", str(study), "--forecast", "16", "--size", "8", "--size", "16") == 0
    said = capsys.readouterr().out
    assert "variance removed" in said and "850.0" in said and "1650.0" in said  # 50 a run and 100 an hour


def test_ask_mix_shares_the_money(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("ask", "mix", str(study), "--target", "0.7") == 0
    said = capsys.readouterr().out
    assert "Share of the money" in said and "demos for" in said
    study.write_text(STUDY.replace("second = 2.0", "second = 0.0"))
    assert code_of("ask", "mix", str(study), "--target", "0.7") == 2
    assert "[prices]" in capsys.readouterr().err


def test_ask_better_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("ask", "better", "40/50", "14/50") == 0
    assert "+52 points" in capsys.readouterr().out
    assert code_of("ask", "better", "40", "14/50") == 2
    assert "successes/trials" in capsys.readouterr().err


def test_ask_pairs_uses_the_pairing_and_the_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    won = {"A": [1] * 16 + [0] * 4, "B": [0] * 14 + [1] * 2 + [0] * 4}
    pl.DataFrame(won).write_csv(tmp_path / "trials.csv")
    assert code_of("ask", "pairs", str(tmp_path / "trials.csv"), "--a", "A", "--b", "B") == 0
    said = capsys.readouterr().out
    assert "A succeeds more often than B" in said and "pair" in said
    assert code_of("ask", "pairs", str(tmp_path / "trials.csv"), "--a", "A", "--b", "C") == 2
    assert "no column 'C'" in capsys.readouterr().err


def test_ask_ranking_judges_each_task_and_writes_beside_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sim, real = [0.1, 0.3, 0.5, 0.7], {"pour": [0.1, 0.2, 0.3, 0.4], "fold": [0.2, 0.2, 0.2, 0.2]}
    rows = [
        {"task": task, "policy": f"p{k}", "sim": sim[k], "robot": real[task][k], "n": 20}
        for task in real for k in range(4)
    ]  # fmt: skip
    pl.DataFrame(rows).write_csv(tmp_path / "scores.csv")
    words = ["ask", "ranking", str(tmp_path / "scores.csv"), "--model", "sim", "--real", "robot", "--group", "task"]
    assert code_of(*words, "--policy", "policy", "--real-trials", "n") == 0
    said = capsys.readouterr().out
    assert said.index("W_POLICIES") < said.index("rank r") and "E_FLAT: fold" in said
    assert "1.00 [1.00, 1.00]" in said and "0.50 [0.50, 0.50]" in said  # r says perfect, the slope says half
    names = {path.name for path in (tmp_path / "fit").iterdir()}
    assert names == {"ranking.json", "ranking.svg", "ranking.pdf", "ranking.png"}
    document = json.loads((tmp_path / "fit" / "ranking.json").read_text())
    assert document["groups"][0]["slope"]["estimate"] == pytest.approx(0.5) and document["refused"] is None
    assert document["groups"][1]["refused"]["code"] == "E_FLAT"


def test_ask_ranking_refuses_with_a_code_and_writes_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pl.DataFrame({"sim": [10.0, 50.0, 90.0], "real": [0.1, 0.2, 0.4]}).write_csv(tmp_path / "scores.csv")
    target = tmp_path / "why.json"
    words = ["ask", "ranking", str(tmp_path / "scores.csv"), "--model", "sim", "--real", "real", "--json", str(target)]
    assert code_of(*words) == 2
    assert "refused E_RATE" in capsys.readouterr().out
    assert json.loads(target.read_text())["refused"]["code"] == "E_RATE" and not (tmp_path / "fit").exists()
    assert code_of(*words, "--level", "95") == 2
