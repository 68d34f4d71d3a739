"""Temporary folders go with whoever made them, at whatever moment he is killed."""

import os
import subprocess
import sys

from lowres import locks
from lowres.files import ROOT

DIES = """
import fcntl, os, sys, tempfile; from lowres import locks
tempfile.gettempdir()  # tries it with a file of Python's own
left = int(sys.argv[1])
def dying(call):
    def called(*given, **more):
        global left
        left -= 1
        return os._exit(9) if left < 0 else call(*given, **more)
    return called
for module, name in ((os, "mkdir"), (os, "open"), (fcntl, "flock"), (os, "unlink"), (os, "rmdir")):
    setattr(module, name, dying(getattr(module, name)))
with locks.scratch_folder() as folder:
    (folder / "below").mkdir()
    for name in ("a", "below/b", "z"): (folder / name).symlink_to("nowhere")
"""


def test_a_temporary_folder_whose_owner_is_killed_at_any_point_goes_with_the_next_sweep(temporary):
    for step in range(100):
        ended = subprocess.run([sys.executable, "-c", DIES, str(step)], cwd=ROOT)
        left = [path.name for path in temporary.rglob("*")]
        locks.sweep()
        assert not list(temporary.iterdir()), (step, left)
        if ended.returncode == 0:
            break
    assert step > 8 and not left


def test_a_temporary_folder_that_is_swept_before_it_is_locked_is_made_anew(temporary, monkeypatch):
    swept, opened = [], os.open

    def late(path, *more):
        if str(path).endswith(locks.LOCK) and not swept:
            swept.append(path.parent)
            locks.sweep()
        return opened(path, *more)

    monkeypatch.setattr(os, "open", late)
    with locks.scratch_folder() as folder:
        assert swept and folder != swept[0] and not swept[0].exists() and locks.held(folder / locks.LOCK)
