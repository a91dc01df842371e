"""Plots of a record: bars and lines of medians with their quartiles, axes labelled, with units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testing.lab.record import Row

DPI = 120


def frame(rows: Sequence[Row], figure: str) -> Any:
    """A pandas table, a line for each trial: the rows' labels, and the figure as `value`.

    A fact, which is no figure of trials, gives one line. The model is marked where its weights are
    random.
    """
    import pandas as pd

    lines = []
    for row in rows:
        values = [trial[figure] for trial in row.trials if figure in trial]
        fact = row.facts.get(figure)
        if not values and isinstance(fact, (int, float)):
            values = [float(fact)]
        labels = {**row.labels, "model": row.model} if "model" in row.labels else row.labels
        lines += [{**labels, "value": value} for value in values]
    return pd.DataFrame(lines)


def bars(
    rows: Sequence[Row],
    path: Path,
    *,
    figure: str,
    label: str,
    by: str,
    hue: str | None = None,
    title: str = "",
    log: bool = False,
) -> list[Path]:
    """Horizontal bars of a figure for each value of the label `by`; whiskers are the quartiles.

    On a `log` scale, whose values are above 0, bars begin at a power of ten, which says nothing.
    Nothing is drawn, and [] returned, where no row has the figure.
    """
    data = frame(rows, figure)
    if data.empty:
        return []
    sns = _seaborn()
    labels = [by] if hue is None else [by, hue]
    count = len(data[labels].drop_duplicates())
    made, axes = _figure(height=1.4 + 0.3 * count)
    sns.barplot(
        data,
        y=by,
        x="value",
        hue=hue,
        estimator="median",
        errorbar=("pi", 50),
        err_kws={"linewidth": 1.2},
        ax=axes,
    )
    axes.set_ylabel("")
    axes.set_xlabel(_with_spread(label, data[labels]))
    if log:
        axes.set_xscale("log")
        axes.set_xlim(left=10 ** math.floor(math.log10(data["value"].min())))
    return _finish(made, axes, title, path)


def lines(
    rows: Sequence[Row],
    path: Path,
    *,
    figure: str,
    label: str,
    by: str,
    by_label: str,
    hue: str | None = None,
    title: str = "",
) -> list[Path]:
    """Lines of a figure over the numeric label `by`; bands are the quartiles. [] as of `bars`."""
    data = frame(rows, figure)
    if data.empty:
        return []
    sns = _seaborn()
    made, axes = _figure(height=4.5)
    sns.lineplot(
        data, x=by, y="value", hue=hue, estimator="median", errorbar=("pi", 50), marker="o", ax=axes
    )
    axes.set_xlabel(by_label)
    axes.set_ylabel(_with_spread(label, data[[by] if hue is None else [by, hue]]))
    axes.set_ylim(bottom=0)
    return _finish(made, axes, title, path)


def _with_spread(label: str, groups: Any) -> str:
    """`groups` has a line for each value: several of one group have a spread, facts have none."""
    return f"{label}; median, quartiles" if groups.duplicated().any() else label


def _seaborn() -> Any:
    import matplotlib

    matplotlib.use("agg")  # no display is needed, or looked for
    import seaborn as sns

    sns.set_theme(style="whitegrid", palette="colorblind")
    return sns


def _figure(height: float) -> tuple[Any, Any]:
    """A figure of its own, unknown to pyplot, so that none has to be closed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(9.0, height), layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots()


def _finish(made: Any, axes: Any, title: str, path: Path) -> list[Path]:
    axes.set_title(title)
    if axes.get_legend() is not None:
        _seaborn().move_legend(
            axes, "upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, title=None
        )
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, dpi=DPI, bbox_inches="tight")  # a long label may reach beyond its axes
    return [path]
