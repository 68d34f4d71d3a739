"""What a machine or a person does to a study (`make chaos`): memory that runs out, a clock set back, a folder that cannot be written, a cut
record, Ctrl-C at every stage. (Processes that are killed: test_chaos.py; a full disk and damaged files: test_execution.py, too.)"""

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from stand_ins import BORROWED, eventually, finish, noted, nothing_is_left, start_process, start_runner, write_notebook, write_study
from toys import GRAMMAR

from lowres.runs.execute import Options, execute
from lowres.runs.status import all_statuses, status_of

pytestmark = pytest.mark.chaos
CGROUPS = Path("/sys/fs/cgroup/memory")


def states(study) -> list[str]:
    return [status.state for status in all_statuses(study)]


def calm(folder: Path, **settings):
    """The same study of stand-ins, left in peace."""
    (folder / "calm").mkdir()
    study = write_study(folder / "calm", **settings)
    for run in study.runs:
        finish(run)
    return study


def mounted(place: Path, *options: str) -> None:
    """A small disk for the test, skipped where that is not permitted."""
    place.mkdir(exist_ok=True)
    tried = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {tried.stderr.strip()}")


@pytest.fixture
def little_memory():
    """A group of processes that may have 400 MB together: the system kills one that takes more."""
    group = CGROUPS / f"lowres-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text("400M")
    except OSError as error:
        pytest.skip(f"a group of processes with little memory is not permitted here: {error}")
    yield group
    eventually(lambda: not (group / "cgroup.procs").read_text(), "the group's processes to end")
    group.rmdir()


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_AS, (6_000_000_000, -1)); "
TAKE = "room = bytearray(8_000_000_000)"


@pytest.mark.parametrize("how", ["killed by the system", "refused by the system"])
def test_a_kernel_whose_memory_runs_out_says_so_and_the_other_runs_go_on(tmp_path, temporary, forking, toll, request, how):
    toll.fault = f"memory {how}"
    if killed := how == "killed by the system":
        limit = f"open('{request.getfixturevalue('little_memory')}/cgroup.procs', 'w').write(str(os.getpid())); "
    settings = {"seeds": [0, 1], "shots": [2, 4, 8]}
    study = write_study(tmp_path, **settings)
    work = f"if shots == 4 and seed == 1: {limit if killed else LIMITED}{TAKE}"
    runner = start_runner(study, write_notebook(tmp_path / "n", work=work), temporary, **{BORROWED: forking})
    assert runner.wait(600) == 1, runner.stdout.read()
    toll.times = 3 if killed else 1
    assert states(study) == ["done", "failed", "done"]
    broken = all_statuses(study)[1]
    assert broken.finished == 1 and broken.failure["again"] == killed
    assert broken.failure["message"].startswith("out of memory"), broken.failure["message"]
    assert noted(study).count("vanilla 4 1") == toll.times and noted(study).count("vanilla 4 0") == 1
    nothing_is_left(study, temporary)
    toll.look(study)
    shutil.rmtree(study.folder / "failed")
    again = start_runner(study, write_notebook(tmp_path / "n"), temporary, **{BORROWED: forking})
    assert again.wait(600) == 0, again.stdout.read()
    toll.end(study, temporary)
    toll.compare(study, calm(tmp_path, **settings), whole=False)


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    long failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME && !access(MARK, F_OK)) now->tv_sec -= 7200;
    return failed;
}
time_t time(time_t *place) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place) *place = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec, now->tv_usec = found.tv_nsec / 1000;
    return 0;
}
"""


def test_a_clock_that_is_set_back_two_hours_midway_changes_nothing(tmp_path, temporary, toll):
    toll.fault = "clock set back midway"
    mark, source, library = tmp_path / "set-back", tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(CLOCK)
    if not shutil.which("cc"):
        pytest.skip("no compiler here: the clock cannot be set back for a few processes alone")
    subprocess.run(["cc", "-shared", "-fPIC", f'-DMARK="{mark}"', "-o", str(library), str(source), "-ldl"], check=True)
    settings = {"seeds": range(4), "shots": [2, 4]}
    study = write_study(tmp_path, **settings)
    tell = f"print('clock', time.time(), flush=True); open({str(tmp_path / 'times')!r}, 'a').write(f'{{time.time()}}\\n'); time.sleep(1)"
    runner = start_runner(study, write_notebook(tmp_path / "n", work=tell), temporary, LD_PRELOAD=str(library))
    eventually(lambda: runner.poll() is not None or len(noted(study)) >= 3, "trials to begin")
    toll.look(study)
    mark.touch()
    toll.times += 1
    assert runner.wait(600) == 0, runner.stdout.read()
    told = [float(line) for line in (tmp_path / "times").read_text().split()]
    assert min(told) < time.time() - 7000 < max(told), "it was set back for the kernels"
    toll.end(study, temporary)
    assert len(noted(study)) == len(set(noted(study))) == 8
    toll.compare(study, calm(tmp_path, **settings), whole=False)


def test_outputs_that_cannot_be_written_are_one_sentence_and_whatever_is_there_stays(tmp_path, temporary, tiny_llama, toll):
    toll.fault = "outputs cannot be written"
    study = write_study(tmp_path, seeds=[0, 1], shots=[2, 4], model=tiny_llama, task=GRAMMAR)
    finish(study.runs[0])
    toll.look(study)
    shutil.move(tmp_path / "outputs", tmp_path / "written")
    mounted(tmp_path / "outputs", "size=1m")
    try:
        shutil.copytree(tmp_path / "written", tmp_path / "outputs", dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "outputs")], check=True)
        runner = start_process(["-m", "lowres", "run", str(study.path), "--outputs", str(study.folder.parent)], temporary)
        said, _ = runner.communicate(timeout=300)
        toll.times += 1
        assert runner.returncode == 2 and "Traceback" not in said, said
        assert said.splitlines()[-1].startswith("lowres: ") and "Read-only file system" in said, said
        nothing_is_left(study, temporary)
        toll.look(study)
        assert states(study) == ["done", "missing"]
        toll.finished = len(toll.before)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "outputs")], check=True)


def test_runners_that_find_no_room_for_temporary_files_say_so(tmp_path, temporary, toll, monkeypatch):
    toll.fault = "no room for temporary files"
    study = write_study(tmp_path)
    mounted(temporary / "disk", "size=64k")
    try:
        with open(temporary / "disk" / "ballast", "wb", buffering=0) as ballast:
            with pytest.raises(OSError):
                while True:
                    ballast.write(b"0" * 1024)
        monkeypatch.setattr("tempfile.tempdir", str(temporary / "disk"))
        toll.times += 1
        result = execute(study.runs[0], Options(notebooks=write_notebook(tmp_path / "n")))
        assert result.state == "failed" and "the disk is full" in result.message
    finally:
        subprocess.run(["umount", "-l", str(temporary / "disk")], check=True)


def test_a_record_that_is_cut_anywhere_is_told_and_the_run_is_made_anew(tmp_path, temporary, forking, toll):
    toll.fault, chance = "record cut", random.Random("cut")
    settings = {"seeds": [0, 1], "shots": [2, 4, 8]}
    study = write_study(tmp_path, **settings)
    for run in study.runs:
        finish(run)
    for run in study.runs[:2]:
        record = (run.folder / "record.json").read_bytes()
        for _ in range(30):
            (run.folder / "record.json").write_bytes(record[:chance.randrange(len(record) - 2)])  # but for the last bracket and line
            toll.times += 1
            status = status_of(run)
            assert (status.state, status.finished) == ("partial", 0) and status.faults[0] == "record.json is empty or cut short"
    runner = start_runner(study, write_notebook(tmp_path / "n"), temporary, **{BORROWED: forking})
    said, _ = runner.communicate(timeout=600)
    assert runner.returncode == 0, said
    assert [len(list(run.folder.glob("aside/*/record.json"))) for run in study.runs] == [1, 1, 0], "what was cut is kept aside"
    toll.end(study, temporary)
    toll.compare(study, calm(tmp_path, **settings), whole=False)
