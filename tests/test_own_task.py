"""The README's way to a task of one's own, step by step, in a copy of the project: three labels, rows written for it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lowres.files import ROOT

ROWS = {
    "praise": ["We loved the {}.", "Thank you, the {} was lovely.", "The {} made our week."],
    "complaint": ["The {} was dirty.", "The {} is broken again.", "We paid for the {} and never got it."],
    "question": ["When does the {} open?", "Where is the {}?", "Is the {} free for children?"],
}
PLACES = {"train": ["pool", "garden"], "test": ["room", "shuttle bus", "breakfast"], "elsewhere": ["catalogue", "reading room"]}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for part in ("lowres", "notebooks", "parameters"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name, places in PLACES.items():
        lines = [f"{text.format(place)}\t{label}" for label, texts in ROWS.items() for text in texts for place in places]
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / f"{name}.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    return folder


def lowres(project: Path, *words: str, code: int = 0) -> str:
    environment = os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "lowres", *words], capture_output=True, text=True, cwd=project, env=environment, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_without_a_task_file_the_study_says_what_it_waits_for(project):
    assert "there is no task 'mine'" in lowres(project, "run", "mine", "--data-dir", "data", code=2)


def test_the_template_filled_in_is_checked_and_run(project, tiny_llama):
    task = yaml.safe_load((project / "parameters/tasks/template.yaml").read_text())
    task |= {"name": "mine", "description": "what a guest writes", "labels": list(ROWS), "instruction": "",
             "label_words": {"words": {"praise": " good", "complaint": " bad", "question": " Question"}}}
    (project / "parameters/tasks/mine.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    assert "pool 18, test 27, elsewhere 18 rows: nothing is wrong" in lowres(
        project, "check", "parameters/tasks/mine.yaml", "--data-dir", "data")
    study = project / "parameters/studies/mine.yaml"
    asked = yaml.safe_load(study.read_text())
    asked["set"] |= {"model": tiny_llama, "seeds": [0, 1]}
    asked["vary"] = {"task": ["mine"], "shots": [4]}
    study.write_text(yaml.safe_dump(asked, sort_keys=False))
    said = lowres(project, "run", "mine", "--data-dir", "data", "--only", "method=in_context")
    assert "2 of 2 trials" in said and "analysis.ipynb" in said
    close = "Two draws have on average 67% of their examples in common"  # 4 of the 6 rows of a label
    assert f"mine: {close}" in said
    [executed] = (project / "outputs/mine/in_context").glob("*/*/*/run.ipynb")
    assert close in executed.read_text()
    answer = (project / "outputs/mine/analysis.ipynb").read_text()
    assert "elsewhere" in answer and "out-of-domain" in answer and close in answer
