"""The bench's table, and the machine that it was made on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

from lowres.models.identity import processor

COLUMNS = ["measure", "case", "figure", "lowest to highest", "repeats", "target", "reached"]
PACKAGES = ("torch", "transformers", "accelerate", "peft", "tokenizers", "numpy")


def machine() -> dict:
    """Of the process that asks: processor, cores, memory, threads, versions."""
    import psutil
    import torch

    has_bf16 = {"avx512_bf16": torch.cpu._is_avx512_bf16_supported, "amx_bf16": torch.cpu._is_amx_tile_supported}
    return {
        "processor": processor(), "bfloat16": [name for name, asked in has_bf16.items() if asked()], "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1), "threads": torch.get_num_threads(), "system": platform.platform(),
        "python": platform.python_version(), **{name: version(name) for name in PACKAGES},
    }


def page(measures: list[dict]) -> str:
    """Markdown: the machine, a table of all figures, how each was made."""
    rows = [row for measure in measures for row in measure["rows"]]
    known = next((measure["machine"] for measure in measures if "machine" in measure), {})
    reached, missed = (sum(row["met"] is met for row in rows) for met in (True, False))
    minutes = sum(measure["minutes"] for measure in measures)
    lines = [
        "# lowres against the usual ways", "",
        "A: transformers' Trainer as the authors ran it: float32, padded to 128 tokens, evaluation in batches of 8. B: the Trainer well tuned:",
        "bfloat16, padded to the longest, grouped by length, evaluation in batches of 64, not compiled. Figures are medians, or ratios of",
        "medians, over alternating repeats; lowest and highest are of single repeats. Whole trials are composed of measured parts, which stand",
        "below; tokenization is in none.", "",
        "; ".join(f"{key.replace('_', ' ')}: {', '.join(value) if isinstance(value, list) else value}" for key, value in known.items()) + ".", "",
        f"{reached} targets reached, {missed} missed; {minutes:.0f} minutes.", "",
        "| " + " | ".join(COLUMNS) + " |", "| --- | --- | ---: | ---: | ---: | ---: | --- |",
        *(_line(row) for row in rows), "", "## How each figure is made", "",
        *(f"- {row['measure']}, {row['case']}: {row['parts']}" for row in rows if row["parts"]),
    ]
    failed = [f"- {measure['name']}: {measure['failed']}" for measure in measures if "failed" in measure]
    return "\n".join(lines + (["", "## What failed", "", *failed] if failed else [])) + "\n"


def _line(row: dict) -> str:
    spread = "" if row["low"] is None else f"{row['low']:.3g} to {row['high']:.3g}"
    target = "" if row["target"] is None else f"{'at most' if row['at_most'] else 'at least'} {row['target']:g}"
    reached = {True: "yes", False: "**no**", None: ""}[row["met"]]
    cells = [row["measure"], row["case"], f"{row['figure']:.3g} {row['unit']}".rstrip(), spread, str(row["repeats"]), target, reached]
    return "| " + " | ".join(cells) + " |"


def told(measure: dict) -> str:
    """One line as soon as a measure has ended."""
    if "failed" in measure:
        return f"{measure['name']}: FAILED: {measure['failed'].splitlines()[-1]}"
    reached = [row["met"] for row in measure["rows"] if row["met"] is not None]
    return f"{measure['name']}: {sum(reached)} of {len(reached)} targets reached, {measure['minutes']:.1f} minutes"
