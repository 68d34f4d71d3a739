"""Kernels that are forks of one process: each as new as one that was started, and gone with whoever asked for it."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from stand_ins import eventually

from lowres import locks
from lowres.files import ROOT, BadInput
from lowres.runs import kernel
from lowres.runs.execute import Options, pinned
from lowres.runs.process import Forked, Forks, elsewhere, forks, run_notebook

LOOK = """
import json, os, random, sys, threading, numpy
files = [os.path.realpath(f"/proc/self/fd/{name}").rsplit("/", 1)[-1] for name in os.listdir("/proc/self/fd")]
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "group": os.getpgrp(), "folder": os.getcwd(),
    "ours": sorted(name for name in sys.modules if name.split(".")[0] == "lowres"), "torch": "torch" in sys.modules,
    "random": [random.random(), numpy.random.rand()], "mark": os.environ.get("LOWRES_MARK"), "threads": os.environ["OMP_NUM_THREADS"],
    "left": [getattr(sys, "left", None), os.environ.get("LEFT"), hasattr(numpy, "left")],
    "sockets": sum(file.startswith("socket") for file in files), "pidfds": sum("pidfd" in file for file in files),
}))
sys.left, numpy.left, os.environ["LEFT"] = 1, 1, "1"
os.chdir("/")
"""
pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="kernels are forked on Linux alone")


def executed(code: str, forked_by: str = "", mark: str = "") -> tuple[object, str]:
    with locks.scratch_folder() as folder:
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), folder / "in.ipynb")
        ended = run_notebook(folder / "in.ipynb", folder / "out.ipynb", {}, folder, {"LOWRES_MARK": mark, **pinned(Options())}, forked_by=forked_by)
        outputs = nbformat.read(folder / "out.ipynb", 4).cells[-1].get("outputs", [])
    return ended, "".join(output.get("text", "") for output in outputs)


def looked(forked_by: str = "", mark: str = "") -> dict:
    ended, printed = executed(LOOK, forked_by, mark)
    assert not ended.kind, ended
    return json.loads(printed)


def test_a_forked_kernel_is_like_one_that_was_started_and_nothing_of_one_is_left_for_the_next(forking):
    one, two = looked(forking, "one"), looked(forking, "two")
    for found, mark in ((one, "one"), (two, "two")):
        assert found["parent"] == forks.process.pid and found["group"] == found["pid"] and found["folder"] == str(ROOT)
        assert found["mark"] == mark and found["threads"] == "1" and found["left"] == [None, None, False] and found["torch"]
    assert one["pid"] != two["pid"]
    assert not set(one["random"]) & set(two["random"]), "each has its own chance"
    assert one["pidfds"] == 0 and one["sockets"] == two["sockets"]
    assert one["ours"] == ["lowres", "lowres.runs", "lowres.runs.kernel"], "our code is read by each kernel, as it is then"
    assert os.environ.get("LEFT") is None


def test_where_nobody_forks_any_more_a_kernel_is_started_and_has_seen_nothing_else(forking):
    found = looked("lowres-nobody", "three")
    assert found["parent"] == os.getpid() and found["mark"] == "three" and not found["torch"] and found["folder"] == str(ROOT)
    assert found["ours"] == ["lowres", "lowres.runs", "lowres.runs.kernel"]


def test_how_a_forked_kernel_ended_is_told(forking):
    killed, _ = executed("import os\nos.kill(os.getpid(), 9)", forking)
    assert killed.kind == "died" and killed.again and "was killed (SIGKILL)" in killed.message
    left, _ = executed("import os\nos._exit(3)", forking)
    assert left.kind == "died" and "exit code 3" in left.message
    assert executed("1 / 0", forking)[0].message == "ZeroDivisionError: division by zero"


def test_what_is_imported_for_all_kernels_is_what_the_notebooks_come_to_import(forking):
    code = "import sys\nbefore = set(sys.modules)\nimport lowres.runs.notebook, lowres.methods.baselines, lowres.methods.show\n"
    code += "import lowres.analysis.plots, lowres.models.adapters, lowres.models.weights, peft\n"
    code += "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    code += "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before if not name.startswith(('lowres', '_'))}))"
    ended, printed = executed(code, forking)
    assert not ended.kind, ended
    assert not {"torch", "transformers", "peft", "pyarrow", "scipy", "matplotlib", "seaborn", "IPython", "datasets"} & set(printed.split()), printed


def asleep(forking: str, folder: Path) -> Forked:
    """A process forked as for a kernel, whose connection file is not there: it is killed before it looks, or ends."""
    return Forked(forking, ["-f", str(folder / "kernel.json")], folder / "log", os.environ)


def test_a_forked_kernel_ends_with_the_one_who_asked_for_it(forking, tmp_path):
    code = "import sys, time\nfrom pathlib import Path\nfrom lowres.runs.process import Forked\n"
    code += "kernel = Forked(sys.argv[1], ['-f', sys.argv[2] + '/kernel.json'], Path(sys.argv[2], 'log'), {})\n"
    code += "print(kernel.pid, flush=True)\ntime.sleep(600)"
    client = subprocess.Popen([sys.executable, "-c", code, forking, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    kernel = psutil.Process(int(client.stdout.readline()))
    eventually(lambda: (tmp_path / "kernel.json").exists(), "the kernel to be ready")
    assert kernel.is_running()
    client.kill()
    eventually(lambda: not kernel.is_running(), "the kernel to die")
    assert not [child for child in psutil.Process(forks.process.pid).children() if child.status() == psutil.STATUS_ZOMBIE]


def test_it_ends_with_the_process_that_forked_it_and_is_waited_for_no_longer(tmp_path):
    own = Forks()
    kernel = asleep(own.wanted(pinned(Options()), start=True), tmp_path)
    assert kernel.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        kernel.wait(0.1)
    own.process.kill()
    assert kernel.wait(20) == -signal.SIGKILL == kernel.poll()
    eventually(lambda: not psutil.pid_exists(kernel.pid), "the kernel to die")
    with pytest.raises(OSError):
        asleep(own.name, tmp_path)
    assert own.wanted(pinned(Options())) == ""


def refuse(kind: str) -> int:
    if kind == "no pickle":
        class Odd(Exception):
            pass
        raise Odd("nobody can send this")
    if kind == "dies":
        os._exit(7)
    raise BadInput(f"{kind}: is refused")


@pytest.mark.parametrize("at", ["a fork", "a process that is started"])
def test_a_function_is_called_in_another_process_and_answers_or_refuses_as_here(forking, monkeypatch, at):
    monkeypatch.setenv("PYTHONPATH" if at != "a fork" else "LOWRES_X", str(Path(__file__).parent))
    assert forks.fits() == (at == "a fork")
    assert elsewhere("os:getpid") not in (os.getpid(), forks.process.pid) and elsewhere("os.path:join", "a", "b") == "a/b"
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with pytest.raises(BadInput, match="nowhere"):
        elsewhere("lowres.tasks.task_file:read_task", "nowhere.yaml")
    if at != "a fork":  # this file can be imported there
        with pytest.raises(RuntimeError, match="Odd: nobody can send this"):
            elsewhere("test_kernels:refuse", "no pickle")
        with pytest.raises(RuntimeError, match="without an answer .exit code 7"):
            elsewhere("test_kernels:refuse", "dies")


def test_a_worker_with_a_thousand_open_files_still_gets_its_kernels(forking):
    files = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        assert elsewhere("os.path:join", "a", "b") == "a/b" and looked(forking)["torch"]
    finally:
        for file in files:
            os.close(file)


def test_a_process_that_ended_leaves_no_open_file_here(forking, tmp_path):
    kernel = asleep(forking, tmp_path)
    kernel.kill()
    assert kernel.wait(20) == -signal.SIGKILL and kernel.forks.fileno() == -1


def test_what_is_called_elsewhere_is_so_from_within_a_jupyter_kernel_too(monkeypatch):
    monkeypatch.setenv("JPY_PARENT_PID", "4321")  # the Jupyter server's, which is not this process
    monkeypatch.setenv("HF_HOME", "/elsewhere")  # so that nobody forks
    assert elsewhere("os.path:join", "a", "b") == "a/b"


def test_where_nobody_forks_no_name_is_asked_that_anybody_might_have_taken(tmp_path, monkeypatch):
    with pytest.raises(ConnectionError, match="nobody forks"):
        asleep("", tmp_path)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind("\0lowres-stranger")
        stranger.listen()
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        with pytest.raises(ConnectionError, match="somebody else"):
            asleep("lowres-stranger", tmp_path)


def test_one_who_says_nothing_does_not_keep_the_others_waiting_for_long(forking):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(f"\0{forking}")
        assert elsewhere("os.path:join", "a", "b") == "a/b"


def test_what_dask_sets_for_its_workers_makes_no_other_environment(forking, monkeypatch):
    for name in ("__DASK_PARENT_PID", "MALLOC_TRIM_THRESHOLD_", "OPENBLAS_NUM_THREADS", "PYTHONHASHSEED"):
        monkeypatch.setenv(name, "7")
    assert forks.wanted(pinned(Options())) == forking


def test_another_environment_wants_another_process_but_for_what_differs_from_run_to_run(forking, monkeypatch):
    monkeypatch.setenv("LOWRES_SCRATCH", "elsewhere")
    assert forks.wanted(pinned(Options())) == forking
    assert forks.wanted(pinned(Options(threads=2))) == ""
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    assert forks.wanted(pinned(Options())) == ""


def test_somebody_else_on_this_host_gets_no_kernel(monkeypatch):
    ours, theirs = socket.socketpair()
    assert kernel._is_ours(theirs)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert not kernel._is_ours(theirs)
