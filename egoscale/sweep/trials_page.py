"""The sheet of trials for a clipboard: one HTML file, A4, boxes to tick, nothing fetched from anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from egoscale.sweep.trials import Key, Trial

ROWS_A_PAGE = 20  # rows of 11 mm on 297 mm, with room for the margins of any printer
FIRST_PAGE = 14  # the first page also says how to fill in the sheet
LONG_TASK = 20  # characters that fit on two lines of their column; longer names are set smaller

STYLE = """
@page { size: A4; margin: 12mm }
* { box-sizing: border-box }
body { margin: 0; color: #000; background: #fff }
body { font: 10.5pt/1.35 "Helvetica Neue", Arial, "Liberation Sans", sans-serif }
section { break-after: page; max-width: 186mm; margin: 0 auto }
section:last-child { break-after: auto }
header { display: flex; justify-content: space-between; align-items: baseline; gap: 6mm }
h1 { font-size: 14pt; margin: 0 }
p, ol { margin: 1.5mm 0 }
ol { padding-left: 6mm }
.who { display: flex; gap: 6mm; margin: 2.5mm 0 }
.who span { flex: 1; border-bottom: .3mm solid #000; padding-bottom: 1mm }
table { border-collapse: collapse; width: 100%; table-layout: fixed }
th { font-size: 8.5pt; text-align: left; font-weight: 600; padding: 1mm 1.2mm }
td { height: 11mm; padding: 0 1.2mm; border-top: .2mm solid #999; overflow-wrap: anywhere }
td + td.write { border-left: .2mm solid #bbb }
tbody { break-inside: avoid }
tbody tr:first-child td { border-top: .6mm solid #000 }
table { border-bottom: .6mm solid #000 }
.long { font-size: 7.5pt; line-height: 1.2 }
.code { font-size: 15pt; font-weight: 700 }
.box { display: inline-block; width: 6.5mm; height: 6.5mm; border: .4mm solid #000 }
.box { vertical-align: middle; margin-right: 1mm }
.box + .box { margin-left: 3mm }
footer { font: 7.5pt "Liberation Mono", Consolas, monospace; margin-top: 2.5mm; overflow-wrap: anywhere }
@media screen {
  body { background: #eee }
  section { background: #fff; padding: 12mm; margin: 6mm auto; max-width: 210mm }
}
"""

RULES = """<ol>
<li>Run the trials from top to bottom. A set (between two thick lines) has one task and one initial condition:
lay the scene out anew before every trial, each time the same.</li>
<li>Load the policy by its letter. Whoever runs, watches or judges trials does not see the key.</li>
<li>Tick yes or no: the whole task, by the rule agreed on beforehand. Credit is the part that was done, if you
grade it: 1 goes with yes, less than 1 with no.</li>
<li>Operators take turns between sets, not within one. A trial that was not run, or broke off for a reason that has
nothing to do with the policy, is run again at once; failing that, leave it empty and say why.</li>
</ol>"""

COLUMNS = {
    "Trial": 12, "Block": 12, "Policy": 15, "Task": 27, "Start": 12,
    "Success": 40, "Credit": 15, "Operator": 18, "Time": 14, "Note": 21,
}  # mm  # fmt: skip


def page_text(key: Key, sealed: str) -> str:
    """The page. It shows letters alone, and the hash of the key on every sheet of paper."""
    pages = list(_pages(key))
    columns = "".join(f'<col style="width:{width}mm">' for width in COLUMNS.values())
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    sections = []
    for number, sets in enumerate(pages, start=1):
        body = "".join(_rows(rows) for rows in sets)
        sections.append(
            f"<section><header><h1>Robot trials</h1><span>page {number} of {len(pages)}</span></header>"
            + (_summary(key) + RULES if number == 1 else "")
            + '<div class="who"><span>Robot</span><span>Place</span><span>Date</span></div>'
            + f"<table><colgroup>{columns}</colgroup><thead><tr>{head}</tr></thead>{body}</table>"
            + f"<footer>SHA-256 of the key: {sealed}</footer></section>\n"
        )
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>Robot trials</title><style>{STYLE}</style></head><body>\n{''.join(sections)}</body></html>\n"
    )


def _summary(key: Key) -> str:
    rows = key.plan
    conditions, blocks = max(row.initial_condition for row in rows), rows[-1].block
    return (
        f"<p>{len(rows)} trials: {len(key.codes)} policies; tasks {escape(', '.join(key.tasks))}; {conditions} initial "
        f"condition{'s' * (conditions > 1)} (column Start); {blocks} block{'s' * (blocks > 1)}.</p>"
    )


def _pages(key: Key) -> Iterator[list[list[Trial]]]:
    """Sets of trials, page by page. A block that fits on a page is not torn; nor is a set, unless it fills a page."""
    page: list[list[Trial]] = []
    left = FIRST_PAGE
    for _, block in groupby(key.plan, key=lambda row: row.block):
        sets = [list(rows) for _, rows in groupby(block, key=lambda row: row.set)]
        size = sum(map(len, sets))
        if page and left < size <= ROWS_A_PAGE:
            yield page
            page, left = [], ROWS_A_PAGE
        for rows in sets:
            if page and left < len(rows):
                yield page
                page, left = [], ROWS_A_PAGE
            while len(rows) > left:
                yield [rows[:left]]
                rows, left = rows[left:], ROWS_A_PAGE
            page.append(rows)
            left -= len(rows)
    if page:
        yield page


def _rows(rows: list[Trial]) -> str:
    boxes = '<span class="box"></span>yes<span class="box"></span>no'
    size = ' class="long"' if len(rows[0].task) > LONG_TASK else ""
    body = "".join(
        f'<tr><td>{row.trial}</td><td>{row.block}</td><td class="code">{row.code}</td><td{size}>{escape(row.task)}</td>'
        f"<td>{row.initial_condition}</td><td>{boxes}</td>" + '<td class="write"></td>' * 4 + "</tr>"
        for row in rows
    )
    return f"<tbody>{body}</tbody>"
