"""Draw the bars: `python -m testing.peers.chart RECORD.json CHART.png`, in the peers' environment.

One column a model, one row a work, one bar an entrant, with the spread over the runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLOURS = {"fp32": "#4477aa", "bf16": "#66ccee", "int8": "#228833", "int4": "#ccbb44"}
RATES = {"prefill": "prompt tokens/s", "decode": "tokens/s", "concurrent": "tokens/s, all together"}


def draw(record: dict[str, Any], target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    rows = record["rows"]
    models = list(dict.fromkeys(r["model"] for r in rows))
    works = list(dict.fromkeys(r["work"] for r in rows))
    tallest = {
        w: max(sum(r["work"] == w and r["model"] == m for r in rows) for m in models) for w in works
    }
    figure, grid = plt.subplots(
        len(works),
        len(models),
        figsize=(8.5 * len(models), 1.2 + sum(0.9 + 0.27 * tallest[w] for w in works)),
        gridspec_kw={"height_ratios": [tallest[w] + 3 for w in works]},
        squeeze=False,
        layout="constrained",
    )
    for line, work in zip(grid, works, strict=True):
        for axes, model in zip(line, models, strict=True):
            shown = [r for r in rows if r["work"] == work and r["model"] == model]
            _bars(axes, shown)
            axes.set_title(f"{model}: {record['works'][work]}", fontsize=11)
            axes.set_xlabel(RATES.get(work, "tokens/s"))
    families = [f for f in COLOURS if any(r["family"] == f for r in rows)]
    figure.legend(
        handles=[Patch(color=COLOURS[f], label=f) for f in families],
        loc="outside lower center",
        ncols=len(families),
        frameon=False,
    )
    machine = record["machine"]
    figure.suptitle(
        f"{machine['model']}, {record['threads']} threads; hatched: this project; "
        "dashed: the memory's limit at our precision",
        fontsize=10,
    )
    figure.savefig(target, dpi=120)


def _bars(axes: Any, rows: list[dict[str, Any]]) -> None:
    places = range(len(rows))
    rates = [r["tokens_per_s"] for r in rows]
    errors = [
        [r["tokens_per_s"] - r["lowest_tokens_per_s"] for r in rows],
        [r["highest_tokens_per_s"] - r["tokens_per_s"] for r in rows],
    ]
    bars = axes.barh(
        places, rates, xerr=errors, color=[COLOURS[r["family"]] for r in rows], capsize=2
    )
    for place, bar, r in zip(places, bars, rows, strict=True):
        if r["engine"] == "ours":
            bar.set_hatch("//")
            bar.set_edgecolor("white")
            if r["roofline_fraction"] and r["work"] == "decode":
                limit = r["decode_tokens_per_s"] / r["roofline_fraction"]
                axes.plot([limit, limit], [place - 0.5, place + 0.5], "k--", linewidth=1)
        mark = " (suspiciously slow)" if r["expected_tokens_per_s"] is not None else ""
        axes.annotate(
            f"{r['tokens_per_s']:,.0f}{mark}",
            (r["highest_tokens_per_s"], place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(places, [f"{r['engine']} {r['variant']}" for r in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
