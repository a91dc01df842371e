"""The set-up script's decisions, with every outside command replaced by a recording fake."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.remove_partial_installs import remove_partial_installs

ROOT = Path(__file__).parents[1]
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or BASH is None, reason="the set-up script is for Unix shells"
)
# Harmless commands that the script may really use.
REAL_COMMANDS = ["cat", "chmod", "cmp", "cp", "dirname", "flock", "grep", "mkdir", "mv", "rm"]
REAL_COMMANDS += ["tr", "uname"]
ALL_LIBRARIES = ["libGL.so.1", "libX11.so.6", "libX11-xcb.so.1", "libXext.so.6", "libXrandr.so.2"]
ALL_LIBRARIES += ["libXinerama.so.1", "libXcursor.so.1", "libXi.so.6", "libXrender.so.1"]
ALL_LIBRARIES += ["libXxf86vm.so.1", "libstdc++.so.6"]

# Answers as `python` would; `-m venv` and `uv venv` make an environment of the same kind.
FAKE_PYTHON = """
case "$*" in
    *version_info*) exit {wrong_version} ;;
    *ensurepip*) [ -e "$SANDBOX/venv-module-installed" ] || exit {no_venv_module} ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    "-m pip show"*) exit 1 ;;
    "-m pip --version") [ ! -e "$SANDBOX/pip-missing" ] ;;
    "-m pip install"*) [ ! -e "$SANDBOX/offline" ] ;;
esac
"""


EXTRAS = ("-dev", "-jax", "-openvino", "-ray")  # what tests need beside what the program needs


class Sandbox:
    """A copy of the set-up files beside a PATH that holds only fakes and harmless commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder / "project"
        self.bin = folder / "bin"
        self.log = folder / "log"
        self.path = [self.bin]
        self.bin.mkdir()
        (self.project / "scripts").mkdir(parents=True)
        for name in ("scripts/setup.sh", *(f"requirements{part}.txt" for part in ("", *EXTRAS))):
            shutil.copy(ROOT / name, self.project / name)
        for name in REAL_COMMANDS:
            if real := shutil.which(name):
                (self.bin / name).symlink_to(real)
        self.set_user(root=False)
        self.set_libraries(ALL_LIBRARIES)

    def fake(self, name: str, body: str, folder: Path | None = None) -> Path:
        """A command that records how it was called, then does `body`."""
        file = (folder or self.bin) / name
        file.parent.mkdir(exist_ok=True)
        record = 'printf "%s\\n" "${0##*/} $*" >>"$SANDBOX/log"\n'
        file.write_text(f"#!{BASH}\n{record}{body}\n")
        file.chmod(0o755)
        return file

    def fake_python(
        self,
        name: str = "python3.11",
        *,
        right_version: bool = True,
        venv_module: bool = True,
        folder: Path | None = None,
    ) -> Path:
        body = FAKE_PYTHON.format(
            wrong_version=int(not right_version), no_venv_module=int(not venv_module)
        )
        return self.fake(name, body, folder)

    def set_user(self, *, root: bool) -> None:
        self.fake("id", f"echo {0 if root else 1000}")

    def set_libraries(self, names: list[str]) -> None:
        lines = "".join(f"\t{name} (libc6,x86-64) => /lib/{name}\n" for name in names)
        self.fake("ldconfig", f"cat <<'END'\n{lines}END")

    def run(self, what: str = "run", **environment: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        return subprocess.run(
            [str(BASH), "scripts/setup.sh", what],
            cwd=self.project,
            env={
                "PATH": os.pathsep.join(map(str, self.path)),
                "SANDBOX": str(self.folder),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=30,
        )

    def calls(self, start: str = "") -> list[str]:
        """How the fakes were called in the last run, in order."""
        return [line for line in self.log.read_text().splitlines() if line.startswith(start)]

    def pip_installs(self) -> list[str]:
        return self.calls("python -m pip install")


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def test_first_run_makes_the_environment_and_the_second_does_nothing(sandbox: Sandbox) -> None:
    sandbox.fake_python()
    first = sandbox.run()
    assert first.returncode == 0, first.stderr
    assert "python3.11 -m venv .venv" in sandbox.calls()
    assert len(sandbox.pip_installs()) == 1
    assert sandbox.pip_installs()[0].endswith("-r requirements.txt")

    second = sandbox.run()
    assert second.returncode == 0
    assert (second.stdout, second.stderr, sandbox.calls()) == ("", "", [])


def test_changed_requirements_are_installed_into_the_same_environment(sandbox: Sandbox) -> None:
    sandbox.fake_python()
    sandbox.run()
    with (sandbox.project / "requirements.txt").open("a") as file:
        file.write("another==1.0\n")
    assert sandbox.run().returncode == 0
    assert not sandbox.calls("python3.11")
    assert len(sandbox.pip_installs()) == 1


def test_tests_need_all_lists_and_leave_the_run_set_in_place(sandbox: Sandbox) -> None:
    sandbox.fake_python()
    for command in ("Xvfb", "xdotool", "chromium"):
        sandbox.fake(command, "")
    assert sandbox.run("dev").returncode == 0
    lists = [f"-r requirements{part}.txt" for part in ("", *EXTRAS)]
    assert sandbox.pip_installs()[0].endswith(" ".join(lists))
    sandbox.run("run")
    assert not sandbox.pip_installs()
    sandbox.run("dev")
    assert not sandbox.calls()


def test_a_failed_installation_is_reported_and_done_again(sandbox: Sandbox) -> None:
    sandbox.fake_python()
    (sandbox.folder / "offline").touch()
    failed = sandbox.run()
    assert failed.returncode != 0
    assert "run this again" in failed.stderr
    (sandbox.folder / "offline").unlink()
    assert sandbox.run().returncode == 0
    assert len(sandbox.pip_installs()) == 1


def test_an_environment_without_pip_is_made_again(sandbox: Sandbox) -> None:
    sandbox.fake_python()
    leftover = sandbox.project / ".venv" / "leftover"
    leftover.parent.mkdir()
    leftover.touch()
    assert sandbox.run().returncode == 0
    assert not leftover.exists()
    assert len(sandbox.pip_installs()) == 1


def test_an_environment_on_another_python_is_left_alone(sandbox: Sandbox) -> None:
    sandbox.fake_python()
    foreign = sandbox.fake_python("python", right_version=False)
    (sandbox.project / ".venv/bin").mkdir(parents=True)
    shutil.move(foreign, sandbox.project / ".venv/bin/python")
    refused = sandbox.run()
    assert refused.returncode != 0
    assert "another Python than 3.11" in refused.stderr
    assert (sandbox.project / ".venv/bin/python").exists()


def test_a_shim_that_does_not_run_is_passed_over(sandbox: Sandbox) -> None:
    shims = sandbox.folder / "shims"
    sandbox.fake("python3.11", "echo 'pyenv: python3.11: command not found' >&2; exit 127", shims)
    sandbox.path.insert(0, shims)
    sandbox.fake_python()
    done = sandbox.run()
    assert done.returncode == 0
    assert f"with {sandbox.bin}/python3.11" in done.stderr


def test_any_name_will_do_if_it_is_python_311(sandbox: Sandbox) -> None:
    sandbox.fake_python("python3", right_version=False)
    sandbox.fake_python("python")
    assert f"with {sandbox.bin}/python\n" in sandbox.run().stderr


def test_a_named_python_comes_first(sandbox: Sandbox) -> None:
    sandbox.fake_python()
    named = sandbox.fake_python("my-python", folder=sandbox.folder / "elsewhere")
    assert f"with {named}\n" in sandbox.run(PYTHON=str(named)).stderr


def test_a_named_python_that_will_not_do_is_said(sandbox: Sandbox) -> None:
    sandbox.fake_python()
    done = sandbox.run(PYTHON="no-such-python")
    assert done.returncode == 0
    assert "PYTHON=no-such-python is not a usable Python 3.11" in done.stderr


def test_uv_supplies_python_and_pip_installs(sandbox: Sandbox) -> None:
    sandbox.fake_python("python3", right_version=False)
    spare = sandbox.fake_python("spare", folder=sandbox.folder / "uv-pythons")
    sandbox.fake("uv", f'mkdir -p .venv/bin; cp "{spare}" .venv/bin/python')
    done = sandbox.run()
    assert done.returncode == 0, done.stderr
    assert sandbox.calls("uv") == ["uv venv --seed --python 3.11 .venv"]
    assert len(sandbox.pip_installs()) == 1


def test_no_python_gives_one_line_that_says_what_to_install(sandbox: Sandbox) -> None:
    sandbox.fake_python("python3", right_version=False)
    failed = sandbox.run()
    assert failed.returncode != 0
    (line,) = failed.stderr.splitlines()
    assert "Python 3.11" in line and "python3.11-venv" in line and "uv" in line


def test_debian_python_without_venv_names_the_package(sandbox: Sandbox) -> None:
    sandbox.fake_python(venv_module=False)
    sandbox.fake("apt-get", "")
    failed = sandbox.run()
    assert failed.returncode != 0
    (line,) = failed.stderr.splitlines()
    assert "sudo apt-get install python3.11-venv" in line
    assert not sandbox.calls("apt-get")


def test_root_installs_the_venv_package(sandbox: Sandbox) -> None:
    sandbox.set_user(root=True)
    sandbox.fake_python(venv_module=False)
    sandbox.fake("apt-get", '[ "$1" = update ] || : >"$SANDBOX/venv-module-installed"')
    done = sandbox.run()
    assert done.returncode == 0, done.stderr
    assert sandbox.calls("apt-get")[-1].endswith(" python3.11-venv")
    assert len(sandbox.pip_installs()) == 1


def test_a_chosen_index_serves_pytorch_alone(sandbox: Sandbox) -> None:
    sandbox.fake_python()
    sandbox.run(TORCH_INDEX="https://example.org/cpu")
    torch, rest = sandbox.pip_installs()
    assert "--index-url https://example.org/cpu torch==2.13.0" in torch
    assert "example.org" not in rest and rest.endswith("-r requirements.txt")


def test_missing_libraries_are_printed_not_installed_for_a_user(sandbox: Sandbox) -> None:
    sandbox.fake_python()
    sandbox.fake("apt-get", "")
    sandbox.fake("sudo", "")
    sandbox.set_libraries([name for name in ALL_LIBRARIES if name != "libXrandr.so.2"])
    done = sandbox.run()
    assert done.returncode == 0
    assert "sudo apt-get install libxrandr2\n" in done.stderr
    assert not sandbox.calls("apt-get") and not sandbox.calls("sudo")
    assert "sudo apt-get install libxrandr2\n" in sandbox.run().stderr, "it is still missing"
    sandbox.set_libraries(ALL_LIBRARIES)
    assert sandbox.run().stderr == ""


def test_root_installs_missing_libraries_once(sandbox: Sandbox) -> None:
    sandbox.set_user(root=True)
    sandbox.fake_python()
    sandbox.fake("apt-get", "")
    sandbox.set_libraries([])
    assert sandbox.run().returncode == 0
    update, install = sandbox.calls("apt-get")
    assert update.startswith("apt-get update")
    assert {"libgl1", "libgl1-mesa-dri", "libx11-6", "libxcursor1"} <= set(install.split())
    assert "xvfb" not in install
    sandbox.run()
    assert not sandbox.calls("apt-get")


def test_a_failing_apt_does_not_stop_the_program(sandbox: Sandbox) -> None:
    sandbox.set_user(root=True)
    sandbox.fake_python()
    sandbox.fake("apt-get", "exit 100")
    sandbox.set_libraries([])
    done = sandbox.run()
    assert done.returncode == 0
    assert "what can run without them runs" in done.stderr


@pytest.mark.parametrize(("missing", "package"), [("Xvfb", "xvfb"), ("chromium", "chromium")])
def test_the_tests_need_a_virtual_display_and_a_browser(
    sandbox: Sandbox, missing: str, package: str
) -> None:
    sandbox.fake_python()
    sandbox.fake("apt-get", "")
    for command in {"Xvfb", "xdotool", "chromium"} - {missing}:
        sandbox.fake(command, "")
    done = sandbox.run("dev")
    assert done.returncode == 0
    assert f"sudo apt-get install {package}\n" in done.stderr


def test_other_systems_get_the_package_names(sandbox: Sandbox) -> None:
    sandbox.fake_python()
    sandbox.set_libraries([name for name in ALL_LIBRARIES if name != "libXi.so.6"])
    done = sandbox.run()
    assert done.returncode == 0
    assert "(Debian's names): libxi6\n" in done.stderr


def test_an_unknown_target_is_refused(sandbox: Sandbox) -> None:
    refused = sandbox.run("everything")
    assert refused.returncode != 0
    assert "run|dev" in refused.stderr


def test_half_written_packages_are_removed(tmp_path: Path) -> None:
    for name, files in {
        "whole-1.0.dist-info": ["METADATA", "RECORD"],
        "half-1.0.dist-info": ["METADATA"],
        "~orch": ["__init__.py"],
        "whole": ["__init__.py"],
    }.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
    assert remove_partial_installs(tmp_path) == ["half-1.0.dist-info", "~orch"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole", "whole-1.0.dist-info"]
