"""What a stand-in for the hub holds in tests: what a study of the paper asks for, made up; and how lowres is asked over it."""

import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import yaml
from datasets import ClassLabel, Dataset, Features, Value
from hub_stand_in import Hub

from lowres.files import ROOT, read_yaml
from lowres.tasks.hub import split_revision

OPT_125M, OPT_350M = read_yaml(ROOT / "parameters/studies/paper.yaml")["vary"]["model"]
GLUE = read_yaml(ROOT / "parameters/tasks/cola.yaml")["pool"]["hub"]
HANS = read_yaml(ROOT / "parameters/tasks/mnli.yaml")["evaluation"]["hans"]["hub"]
NOUNS = ["doctor", "nurse", "pilot", "artist", "children", "letter", "garden"]
VERBS = ["praised", "wrote", "slept", "played", "answered", "followed"]


def sentences(count: int, seed: int) -> list[str]:
    """Made-up ones, no two alike."""
    chance = random.Random(seed)
    return [f"The {chance.choice(NOUNS)} {chance.choice(VERBS)} the {chance.choice(NOUNS)} {seed} {i} ." for i in range(count)]


def parquet(columns: dict[str, list], **labels: list[str]) -> bytes:
    """Rows as the hub keeps them, the columns in `labels` as numbers with names."""
    features = {name: Value("int32" if isinstance(column[0], int) else "string") for name, column in columns.items()}
    features |= {name: ClassLabel(names=names) for name, names in labels.items()}
    target = io.BytesIO()
    Dataset.from_dict(columns, Features(features)).to_parquet(target)
    return target.getvalue()


def cola(count: int, seed: int) -> bytes:
    return parquet({"sentence": sentences(count, seed), "label": [i % 2 for i in range(count)], "idx": list(range(count))},
                   label=["unacceptable", "acceptable"])


def mnli(count: int, seed: int) -> bytes:
    return parquet({"premise": sentences(count, seed), "hypothesis": sentences(count, seed + 1), "label": [i % 3 for i in range(count)],
                    "idx": list(range(count))}, label=["entailment", "neutral", "contradiction"])


def hans(count: int, seed: int) -> bytes:
    heuristics = ["lexical_overlap", "subsequence", "constituent"]
    return parquet({"premise": sentences(count, seed), "hypothesis": sentences(count, seed + 1), "label": [i % 2 for i in range(count)],
                    "heuristic": [heuristics[i // 2 % 3] for i in range(count)], "subcase": ["ln_subject/object_swap"] * count},
                   label=["entailment", "non-entailment"])


def glue_page(splits: dict[str, list[str]]) -> bytes:
    """GLUE's README.md, which says where each configuration's splits lie."""
    configs = [{"config_name": config, "data_files": [{"split": split, "path": f"{config}/{split}-*"} for split in names]}
               for config, names in splits.items()]
    return f"---\nlicense: other\n{yaml.safe_dump({'configs': configs})}---\n# GLUE\n".encode()


def fill(hub: Hub, models: list[dict[str, bytes]]) -> None:
    """All that a study of the paper asks the hub for, at the revisions that it asks for."""
    for name, files in zip((OPT_125M, OPT_350M), models):
        hub.put("models", *split_revision(name), {**files, "README.md": b"# OPT\n", "pytorch_model.bin": b"never read"})
    sets = {"cola/train": cola(400, 1), "cola/validation": cola(1043, 2), "mnli/train": mnli(600, 3), "mnli/validation_matched": mnli(90, 5)}
    hub.put("datasets", GLUE["id"], GLUE["revision"], {
        "README.md": glue_page({"cola": ["train", "validation"], "mnli": ["train", "validation_matched"]}),
        **{f"{name}-00000-of-00001.parquet": rows for name, rows in sets.items()},
    })
    hub.put("datasets", HANS["id"], "main", {"README.md": b"# HANS\n", "hans.py": b"raise SystemExit('a loading script, which is never run')\n"})
    hub.put("datasets", HANS["id"], HANS["revision"], {
        ".gitattributes": b"", "plain_text/train/0000.parquet": hans(60, 7), "plain_text/validation/0000.parquet": hans(120, 9)})


def environment(endpoint: str, home: Path, **more: str) -> dict[str, str]:
    """A new home folder, the stand-in as the hub, and no other network."""
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy") and not key.startswith(("HF_", "XDG_"))}
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    return {**kept, **nowhere, "NO_PROXY": "127.0.0.1", "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": endpoint,
            "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **more}


def lowres(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "lowres", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


ASK = """
import json, sys, time
from pathlib import Path
from lowres.models.backbone import load_backbone
from lowres.models.weights import convert, resolve
from lowres.tasks.hub import from_hub
from lowres.tasks.task_file import Hub

pauses = []
time.sleep = pauses.append  # the client's, between its tries
known = {
    "pauses": lambda: len(pauses),
    "resolve": resolve,
    "before": lambda name: resolve(name, weights=False),
    "load": lambda name: load_backbone(name, precision="float32").parameters(),
    "convert": lambda name, folder: convert(name, Path(folder)),
    "rows": lambda id, config, split, revision: len(from_hub(Hub(id=id, config=config, split=split, revision=revision))),
}
for what, *given in json.loads(sys.argv[1]):
    try:
        answer = known[what](*given)
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps(str(answer)))
"""


def ask(*questions: tuple, **environment: str) -> list[str]:
    """What lowres' own functions answer, one after the other in a process of their own; an error as its kind and sentence."""
    asked = subprocess.run([sys.executable, "-c", ASK, json.dumps(questions)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert asked.returncode == 0, asked.stderr
    return [json.loads(line) for line in asked.stdout.splitlines()]


def rows(source: dict, **other: str) -> tuple:
    return ("rows", *({"config": None, **source, **other}[key] for key in ("id", "config", "split", "revision")))
