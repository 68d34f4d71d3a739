"""What a study of many runs costs that is not training: its plan, its states, a run of it when nothing is to do, its analysis, its site.

Records of 10 to 10,000 runs of ten trials each, made up once and copied, with the fingerprints that the study asks for; each command in a process of
its own. Seconds are a processor's (user and system), which other work on the machine changes less than the clock's.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from site_study import write_notebooks  # noqa: E402
from synthetic import fill, make_study  # noqa: E402
from toys import ENTAILMENT, GRAMMAR  # noqa: E402

from lowres.files import ROOT, read_json  # noqa: E402
from lowres.runs import records  # noqa: E402
from lowres.runs.status import FingerprintInputs  # noqa: E402
from lowres.runs.study import Run, Study, read_study  # noqa: E402
from tests.benchmarks.timing import Row  # noqa: E402

TRIALS = 10
RATES = [round(1e-5 * 2**i, 8) for i in range(10)]
TASKS, SHOTS = ("cola", "mnli", GRAMMAR, ENTAILMENT), (2, 8, 16, 64, 128)
MODELS = tuple(f"facebook/opt-{size}" for size in ("125m", "350m", "1.3b", "2.7b", "6.7b"))


def grown(folder: Path, runs: int) -> Study:
    """A study of 10, 100, 1,000 or 10,000 runs that are all done: ten methods, then tasks and shots, then models, then learning rates."""
    tasks, shots = (TASKS[:1], SHOTS[2:3]) if runs < 100 else (TASKS[:2] if runs < 1000 else TASKS, SHOTS)
    many, models = RATES[: max(1, runs // 1000)], MODELS if runs >= 1000 else MODELS[:1]
    study = read_study(make_study(folder, f"runs{runs}", tasks, shots, range(TRIALS), _methods(many), models), outputs=str(folder / "outputs"))
    first = read_study(make_study(folder, "made_once", tasks, (16,), range(TRIALS), _methods(RATES[:1])), outputs=str(folder / "made_once"))
    fill(first)
    write_notebooks(first)
    patterns = {(run.method, setting(run), run.parameters.task): run.folder for run in first.runs}
    facts, chance = FingerprintInputs(), random.Random(0)
    for run in study.runs:
        _copy(run, patterns[run.method, setting(run), run.parameters.task], facts, chance)
    return study


def _methods(rates: list[float]) -> list[dict]:
    trained = {"vanilla": {}, "pbft": {}, "adaptive": {"adapt": ["pattern", "layers"]}, "lora": {"rank": [1, 8, 64]},
               "distillation": {"inputs": ["few-shot", "pool"]}}
    varied = [{"method": method, "vary": {**own, "learning_rate": rates}} for method, own in trained.items()]
    return [*varied, {"method": "in_context", "vary": {"demonstrations": list(range(1, 1 + len(rates)))}}]


def setting(run: Run) -> object:
    """What tells two variants of a method apart, at one rate."""
    p = run.parameters
    return getattr(p, "adapt", None) or getattr(p, "rank", None) or getattr(p, "inputs", None)


def _copy(run: Run, made: Path, facts: FingerprintInputs, chance: random.Random) -> None:
    """A made-up run as one of the study's: its files, with this run's fingerprints, and accuracies a little higher or lower."""
    shutil.copytree(made, run.folder)
    record, marks = read_json(made / "record.json"), facts.fingerprints(run, list(run.parameters.seeds), None)
    shift = chance.gauss(0, 0.02)
    for trial in record["trials"]:
        trial["fingerprint"] = marks[trial["seed"]]
        for found in trial["sets"].values():
            found["accuracy"] = min(0.99, max(0.01, found["accuracy"] + shift + chance.gauss(0, 0.005)))
    record["fingerprints"] = [trial["fingerprint"] for trial in record["trials"]]
    (run.folder / "record.json").write_text(json.dumps(record, indent=1))
    (run.folder / "parameters.yaml").write_text(records.as_yaml(run.parameters))


COMMANDS = {"status": 5.0, "run": None, "analyse": 60.0, "publish": None}  # and within how many seconds, of 10,000 runs
LARGEST_PAGE, GIGABYTES = 2.0, 2.0  # MB of a page of the site, GB of an analysis, of 10,000 runs


def growth(name: str, scratch: Path, repeats: int, quick: bool) -> list[Row]:
    """Each command over 10 to 10,000 runs that are done; `run` finds nothing to do. Quick: of 10, and no analysis."""
    rows = []
    for runs in (10,) if quick else (10, 100, 1_000, 10_000):
        folder = scratch / str(runs)
        folder.mkdir()
        study, most = grown(folder, runs), runs == 10_000
        for command, target in COMMANDS.items():
            if quick and command == "analyse" or (command == "run" and not (study.folder / "analysis.ipynb").is_file()):
                continue
            seconds, gigabytes = _measured(command, study)
            rows.append(Row("growth", f"lowres {command}, {runs:,} runs", seconds, "s of a core", 1, target if most else None, at_most=True))
            rows.append(Row("growth", f"lowres {command}, {runs:,} runs, memory", gigabytes, "GB", 1, GIGABYTES if most else None, at_most=True))
        largest = max(page.stat().st_size for page in (study.folder / "site").rglob("*.html")) / 1e6
        rows.append(Row("growth", f"the site's largest page, {runs:,} runs", largest, "MB", 1, LARGEST_PAGE if most else None, at_most=True))
        shutil.rmtree(folder)
    return rows


def _measured(command: str, study: Study) -> tuple[float, float]:
    """Seconds of a processor and the peak memory, GB, of a command and all that it started. Raises CalledProcessError."""
    said = subprocess.run([sys.executable, "-c", MEASURED, command, str(study.path), "--outputs", str(study.folder.parent)], cwd=ROOT, check=True,
                          capture_output=True, text=True).stdout
    seconds, gigabytes = map(float, said.splitlines()[-1].split())
    return seconds, gigabytes


MEASURED = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "lowres", *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9)
"""
