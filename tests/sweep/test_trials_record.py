"""What comes back from real robots is checked to the cell, and counted as it was written."""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trial_sheets import filled, keys, made, quick, saved

from egoscale.sweep.trials import Key, digest
from egoscale.sweep.trials_record import record


@quick
@given(keys(), st.integers(0, 10**6))
def test_record_of_a_schedule_counts_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, key: Key, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("trials")
    (folder / "key.json").write_text(key.text())
    rows = filled(key, seed)
    for row in rows:
        grades = ["", "1", "1.0"] if row["success"] == "1" else ["", "0", "0.25", ".5"]
        row["partial_credit"] = random.Random(f"{seed} {row['trial']}").choice(grades)
    random.Random(seed).shuffle(rows)  # a spreadsheet may have sorted them
    found = record(saved(rows, folder / "sheet.csv"), folder / "key.json")
    assert found.key == key and found.num_missing == 0
    for line in found.table().iter_rows(named=True):
        mine = [row for row in rows if key.codes[row["code"]] == line["policy"]]
        credits = [float(row["partial_credit"]) for row in mine if row["partial_credit"]]
        assert (line["successes"], line["trials"]) == (sum(row["success"] == "1" for row in mine), len(mine))
        assert line["graded_trials"] == len(credits) and line["state"] == "done" and line["operator"] == "Ada"
        assert line["mean_partial_credit"] == (pytest.approx(sum(credits) / len(credits)) if credits else None)
        assert sum(line[f"trials_{task}"] for task in key.tasks) == line["trials"]
        assert sum(line[f"successes_{task}"] for task in key.tasks) == line["successes"]
    raw, pairs = found.raw(), found.pairs()
    assert raw["trial"].to_list() == list(range(1, len(rows) + 1))
    assert pairs.height * len(key.codes) == len(rows)
    for name in key.policies:
        assert pairs[name].sum() == raw.filter(policy=name)["success"].sum()


@quick
@given(keys(), st.randoms())
def test_trials_that_were_not_run_are_never_failures(
    tmp_path_factory: pytest.TempPathFactory, key: Key, rng: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("trials")
    (folder / "key.json").write_text(key.text())
    rows = filled(key, success="1", partial_credit="1")
    for row in rows:
        if rng.random() < 0.5:  # not run, or broken off: credit alone is no verdict
            row |= {"success": "", "partial_credit": rng.choice(["", "0.1"])}
    kept = [row for row in rows if row["success"] or rng.random() < 0.5] or rows[:1]  # some rows were never typed in
    found = record(saved(kept, folder / "sheet.csv"), folder / "key.json", partial=True)
    for line in found.table().iter_rows(named=True):
        run = sum(row["success"] == "1" for row in rows if key.codes[row["code"]] == line["policy"])
        all_of_it = len(rows) // len(key.codes)
        assert line["successes"] == line["trials"] == (run or None)  # none at all is not known, and not 0
        assert line["state"] == ("done" if run == all_of_it else "partial")
        assert line["mean_partial_credit"] in (None, 1.0)
    assert found.num_missing == sum(not row["success"] for row in rows)
    assert found.raw()["success"].null_count() == found.num_missing
    assert found.pairs().select(sorted(key.policies)).null_count().sum_horizontal().sum() == 0


Change = Callable[[list[dict[str, str]]], object]
FAULTS: dict[str, tuple[Change, str]] = {
    "unknown code": (lambda rows: rows[2].update(code="Z"), r"row 4, column code = 'Z': not a code of the key"),
    "another code": (
        lambda rows: rows[0].update(code=rows[1]["code"]),
        r"row 2, column code = '\w': was printed as \w; write that again",
    ),
    "doubled": (lambda rows: rows.append(rows[3]), r"row 26, column trial = '4': row 5 is this trial too"),
    "missing": (lambda rows: rows.pop(3), r"column trial: 1 not on the sheet \(4\): put the rows back"),
    "unknown trial": (
        lambda rows: rows[5].update(trial="99"),
        r"row 7, column trial = '99': the sheet has trials 1 to 24",
    ),
    "yes": (lambda rows: rows[0].update(success="yes"), r"row 2, column success = 'yes': write 1 or 0"),
    "two": (lambda rows: rows[0].update(success="2"), r"row 2, column success = '2'"),
    "half": (lambda rows: rows[0].update(success="0.5"), r"'0.5': write 1 or 0; a part of the task goes into partial"),
    "empty": (
        lambda rows: rows[0].update(success=""),
        r"row 2, column success = \(empty\): write 1 or 0; --partial accepts",
    ),
    "credit above 1": (lambda rows: rows[1].update(partial_credit="1.01"), r"row 3, column partial_credit = '1.01'"),
    "credit in per cent": (lambda rows: rows[1].update(partial_credit="50%"), r"'50%': write a number from 0 to 1"),
    "credit below 0": (lambda rows: rows[1].update(partial_credit="-0.5"), r"partial_credit = '-0.5'"),
    "credit nan": (lambda rows: rows[1].update(partial_credit="nan"), r"partial_credit = 'nan'"),
    "success without all credit": (
        lambda rows: rows[1].update(success="1", partial_credit="0.9"),
        r"row 3, column success = '1', column partial_credit = '0.9': 1 and 1 is the whole task, .* leave credit empty",
    ),
    "all credit without success": (
        lambda rows: rows[1].update(success="0", partial_credit="1,0"),
        r"row 3, column success = '0', column partial_credit = '1,0': 1 and 1 is the whole task",
    ),
    "exchanged": (
        lambda rows: [row.update(success=str(n % 2), partial_credit=str(1 - n % 2)) for n, row in enumerate(rows)],
        r"row 2, column success = '0', column partial_credit = '1'",
    ),
    "two commas": (lambda rows: rows[1].update(partial_credit="0,5,5"), r"'0,5,5': write a number from 0 to 1"),
    "task": (lambda rows: rows[1].update(task="pull"), r"row 3, column task = 'pull': was printed as"),
    "block": (lambda rows: rows[1].update(block="9"), r"row 3, column block = '9': was printed as 1"),
    "start": (lambda rows: rows[1].update(initial_condition=""), r"column initial_condition = \(empty\): was printed"),
    "one hash": (lambda rows: rows[1].update(key_sha256="0" * 64), r"row 3, column key_sha256 = '0+': was printed as"),
    "all hashes": (
        lambda rows: [row.update(key_sha256="0" * 64) for row in rows],
        r"row 2, column key_sha256 = '0+': the hash of .*key\.json is \w{64}, so it is another sheet's key",
    ),
    "a column more": (
        lambda rows: [row.update(video="a.mp4") for row in rows],
        r"row 2, column video = 'a.mp4': remarks go into the column note",
    ),
    "a column less": (lambda rows: [row.pop("time") for row in rows], r"row 1: column time is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_sheet_is_refused_with_row_column_value_and_remedy(
    fault: str, key: Key, sealed: Path, tmp_path: Path
) -> None:
    rows = filled(key)
    change, said = FAULTS[fault]
    change(rows)
    sheet = saved(rows, tmp_path / "sheet.csv")
    with pytest.raises(ValueError, match=said):
        record(sheet, sealed)
    if fault in ("missing", "empty"):
        assert record(sheet, sealed, partial=True).num_missing == 1
    else:
        with pytest.raises(ValueError, match=said.partition("; --partial")[0]):
            record(sheet, sealed, partial=True)


def test_a_key_that_was_changed_does_not_fit_its_sheet(key: Key, sealed: Path, tmp_path: Path) -> None:
    sheet = saved(filled(key), tmp_path / "sheet.csv")
    codes = dict(zip(key.codes, reversed(list(key.codes.values())), strict=True))
    sealed.write_text(key.model_copy(update={"codes": codes}).text())
    with pytest.raises(ValueError, match=r"or was changed since; give the key that was written with this sheet"):
        record(sheet, sealed)
    with pytest.raises(FileNotFoundError, match="no such key"):
        record(sheet, tmp_path / "nowhere.json")


@pytest.mark.parametrize("text", ["{}", "[1]", "not json", '{"seed": 1, "codes": {"A": "x"}, "policies": {}}'])
def test_what_is_no_key_is_named(text: str, key: Key, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text(text)
    sheet = saved(filled(key, key_sha256=digest(text)), tmp_path / "sheet.csv")
    with pytest.raises(ValueError, match=r"key\.json: not a key of `egoscale trials schedule`"):
        record(sheet, tmp_path / "key.json")


def test_spreadsheets_save_in_their_own_ways(key: Key, sealed: Path, tmp_path: Path) -> None:
    rows = filled(key)
    expected = record(saved(rows, tmp_path / "sheet.csv"), sealed).raw()
    lines = [list(rows[0]), *([*row.values()] for row in rows)]
    for separator in ",;\t":
        text = "\r\n".join(separator.join(line) + separator for line in lines) + f"\r\n{separator * 11}\r\n"
        (tmp_path / "other.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert record(tmp_path / "other.csv", sealed).raw().equals(expected)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_comma_is_a_decimal_point_too(separator: str, key: Key, sealed: Path, tmp_path: Path) -> None:
    rows = filled(key, success="0")
    for row, credit in zip(rows, ["0,5", ",25", "0,", "0.75"], strict=False):
        row["partial_credit"] = credit
    with (tmp_path / "sheet.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)  # quotes a comma where it must
        writer.writeheader()
        writer.writerows(rows)
    assert record(tmp_path / "sheet.csv", sealed).raw()["partial_credit"].to_list()[:5] == [0.5, 0.25, 0.0, 0.75, None]


@pytest.mark.parametrize(
    ("line", "separator"),
    [
        ("sep=;", ";"),
        ("SEP=,", ","),
        ("sep=\t", "\t"),
        ("sep=|", "|"),
        ('"sep=;"', ";"),
        ("sep=;;;;;", ";"),
        ("sep=;,,,,", ","),
    ],
)
def test_a_first_line_that_names_the_separator_is_no_header(
    line: str, separator: str, key: Key, sealed: Path, tmp_path: Path
) -> None:
    rows = filled(key)
    text = f"{line}\r\n" + "\r\n".join(
        separator.join(cells) for cells in [[*rows[0]], *([*row.values()] for row in rows)]
    )
    (tmp_path / "sheet.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert record(tmp_path / "sheet.csv", sealed).raw()["success"].to_list() == [int(row["success"]) for row in rows]
    (tmp_path / "sheet.csv").write_text(text.replace("Ada", "Ada" + separator, 1))
    with pytest.raises(ValueError, match="row 2, column without a name"):  # numbered as by Excel, which hides the line
        record(tmp_path / "sheet.csv", sealed)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "row 1: column trial is missing"),
        (b"trial,trial\n1,1\n", "row 1: column trial comes twice"),
        (b"\xff\xfet\x00r\x00", "save it as CSV in UTF-8"),
        (b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00b\xee\x9dh", "line 1: not UTF-8; .* not as a workbook"),
        (b'trial,block\n"1,2\n', "save it as CSV in UTF-8"),
        (
            "trial,operator\n1,Zoe\n2,Zoë\n".encode("cp1252"),
            "line 3: not UTF-8; save it as CSV in UTF-8",
        ),
        (",".join([*filled(made())[0]]).encode(), "holds no trial"),
    ],
)
def test_files_that_are_no_sheet(content: bytes, said: str, sealed: Path, tmp_path: Path) -> None:
    (tmp_path / "sheet.csv").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        record(tmp_path / "sheet.csv", sealed)
    with pytest.raises(FileNotFoundError, match="no such sheet"):
        record(tmp_path / "nowhere.csv", sealed)


def test_all_faults_are_named_at_once_up_to_a_few(key: Key, sealed: Path, tmp_path: Path) -> None:
    sheet = saved(filled(key, success="maybe"), tmp_path / "sheet.csv")
    with pytest.raises(ValueError, match=r"row 9, column success[^\n]*\n.*and 16 more$") as caught:
        record(sheet, sealed)
    assert str(caught.value).count("maybe") == 8


def test_remarks_may_hold_anything_and_operators_that_share_a_set_are_told(
    key: Key, sealed: Path, tmp_path: Path
) -> None:
    rows = filled(key)
    rows[0] |= {"note": 'slipped, "twice"\nthen stopped', "operator": "Bea", "time": "14:05"}
    found = record(saved(rows, tmp_path / "sheet.csv"), sealed)
    assert found.raw()["note"][0] == 'slipped, "twice"\nthen stopped' and found.raw()["time"][0] == "14:05"
    assert found.split_sets == 1
    assert "Ada; Bea" in found.table()["operator"].to_list()


def test_names_with_accents_stay_one_name_each(key: Key, sealed: Path, tmp_path: Path) -> None:
    rows = filled(key)
    for row, name in zip(
        rows, ["Zo\N{LATIN SMALL LETTER E WITH DIAERESIS}", "Zoe\N{COMBINING DIAERESIS}"] * 12, strict=True
    ):
        row["operator"] = name  # as typed on two machines
    found = record(saved(rows, tmp_path / "sheet.csv"), sealed)
    assert found.split_sets == 0 and set(found.table()["operator"]) == {"Zoë"}


def test_a_spreadsheet_knows_the_sheet_for_utf_8_in_any_locale(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from egoscale.sweep.trials import schedule, write\n"
        "write(schedule({'a': {}, 'b': {}}, ['\\u00f6ffnen'], 2, 1, 0), Path(sys.argv[1]))"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=os.environ | locale, check=True)
    assert (tmp_path / "sheet.csv").read_bytes().startswith(b"\xef\xbb\xbftrial,block,")
    assert "öffnen" in (tmp_path / "sheet.html").read_text(encoding="utf-8")
    found = record(tmp_path / "sheet.csv", tmp_path / "key.json", partial=True)
    assert found.key.tasks == ["öffnen"]
