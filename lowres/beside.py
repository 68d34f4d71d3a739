"""Results that stand beside a run's own: zero-shot beside demonstrations; teacher and untrained student beside the trained one."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from lowres import analysis, records
from lowres.evaluation import evaluated

if TYPE_CHECKING:
    import pandas as pd


def scored(task, logits: dict[str, np.ndarray]) -> dict[str, Any]:
    """For the key `also` of an outcome's `extra`: metrics, and what tells equal results."""
    outcome = hashlib.sha256(b"".join(part.tobytes() for part in logits.values())).hexdigest()[:16]
    return {"sets": evaluated(task, logits), "outcome_sha256": outcome}


def side_by_side(trials: list[dict[str, Any]], own: str) -> pd.DataFrame:
    """The result table with a line for each of the results under `also`, then the trials' `own`, set by set.

    A result that no seed changes (the untrained backbone's) is one trial, without an interval.
    """
    import pandas as pd

    parts = []
    for who in [*trials[0].get("also", {}), own]:
        found = [{**trial, **trial.get("also", {}).get(who, {})} for trial in trials]
        copies = who != own and records.distinct(found) == 1
        parts.append(records.as_table({"trials": found[:1] if copies else found}, who=who))
    table = pd.concat(parts, ignore_index=True)
    table["order"] = table["set"].map({name: i for i, name in enumerate(trials[0]["sets"])})
    table = table.sort_values("order", kind="stable")
    return analysis.printable(analysis.summary(table, ["set", "domain", "who"])).drop(columns="s a trial")


def compared(trials: list[dict[str, Any]], one: str, other: str) -> list[str]:
    """A sentence an evaluation set: is `one` more accurate than `other`, paired by seed, as far as the seeds tell? And by how much its MCC differs.

    Both are names under `also`; any other name is the trials' own result. Seeds that all say the same leave no interval.
    """
    sentences = []
    for name in trials[0]["sets"]:
        gain, mcc = (np.array([_gain(trial, name, one, other, score) for trial in trials]) for score in ("accuracy", "mcc"))
        sentences.append(f"{name}: the {one} {_verdict(100 * gain)} the {other}: {100 * gain.mean():+.1f} points ({_spread(100 * gain, '.1f')}); "
                         f"MCC {mcc.mean():+.3f} ({_spread(mcc, '.3f')})")
    return sentences


def _gain(trial: dict[str, Any], name: str, one: str, other: str, score: str) -> float:
    own, others = (trial.get("also", {}).get(who, trial)["sets"][name][score] for who in (one, other))
    return round(own - others, 11)  # equal gains are equal, whatever their last bit


def _spread(gain: np.ndarray, form: str) -> str:
    if np.ptp(gain) == 0:
        return "one seed: no interval" if len(gain) == 1 else f"the same for all {len(gain)} seeds: no interval"
    low, high = analysis.interval(gain)
    return f"95 % interval {low:+{form}} to {high:+{form}} over {len(gain)} seeds"


def _verdict(gain: np.ndarray) -> str:
    if np.ptp(gain) == 0:
        return "is ahead of" if gain[0] > 0 else "is behind" if gain[0] < 0 else "is no better than"
    low, high = analysis.interval(gain)
    return "is better than" if low > 0 else "is worse than" if high < 0 else "is NOT shown to be better than"
