"""How figures look: ink, a colour-blind palette, fonts, and settings that make equal figures equal bytes."""

from typing import Any

INK, MUTED, GRID, PAPER = "#1b1d22", "#6b7078", "#e4e5e8", "#fefefe"
# Okabe and Ito's colours that keep their contrast on white and on black, from few demonstrations to many.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00")
MARKERS = ("o", "D", "s", "^")
STYLE: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "font.size": 10,
    "text.color": INK,
    "font.family": ["Liberation Sans", "DejaVu Sans"],
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "egoscale",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "path.simplify": True,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}
