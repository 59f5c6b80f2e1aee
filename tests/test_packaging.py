"""The wheel and the editable install, each in a throwaway environment that borrows this one's third-party packages."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"sortify": "sortify", "sortify_cli": "cli"}
WHERE = "import json, sortify, sortify_cli; print(json.dumps([sortify.__file__, sortify_cli.__file__]))"
pytestmark = pytest.mark.timeout(300)


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command away from the repository, so that only what is installed can be imported."""
    words = [str(word) for word in command]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(words, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def installer() -> list[str]:
    """pip's command line: uv where the environment has it (it is quicker), pip otherwise."""
    return [sys.executable, "-m", "uv", "pip"] if importlib.util.find_spec("uv") else [sys.executable, "-m", "pip"]


def environment(place: Path) -> Path:
    """A new environment that borrows the packages of the running one through a path file; returns its python."""
    run(sys.executable, "-m", "venv", "--without-pip", place, cwd=place.parent)
    python = place / "bin" / "python"
    folder = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    lent = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (folder / "lent.pth").write_text("\n".join(lent))
    return python


def install(python: Path, *what: str | Path) -> None:
    """Install without dependencies and without fetching anything."""
    if "uv" in installer():
        command = [*installer(), "install", "--offline", "--python", str(python)]
    else:
        command = [*installer(), "--python", str(python), "install", "--no-index"]
    run(*command, "--no-deps", "--no-build-isolation", *what, cwd=python.parent)


def check_install(python: Path, home: Path) -> None:
    """Both packages come from `home` and the console script answers."""
    places = json.loads(run(python, "-c", WHERE, cwd=python.parent))
    assert all(Path(place).resolve().is_relative_to(home.resolve()) for place in places), places
    told = run(python.parent / "sortify", "--help", cwd=python.parent)
    assert all(name in told for name in ("convert", "inspect", "train", "evaluate", "extract", "verify"))


def listed() -> dict[str, Path]:
    """The packages that pyproject.toml installs, with their folders."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return {name: folder_of(name, table["package-dir"]) for name in table["packages"]}


def folder_of(package: str, folders: dict[str, str]) -> Path:
    """sortify_cli.x stands in cli/x."""
    first, *rest = package.split(".")
    return Path(folders[first], *rest)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what belongs to the distribution: builds leave their traces there, not in the repository."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without isolation and without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, sources, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_every_package_folder_is_listed() -> None:
    found = {path.parent.relative_to(ROOT) for folder in FOLDERS.values() for path in (ROOT / folder).rglob("*.py")}
    assert set(listed().values()) == found


def test_wheel_holds_every_file(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".html", ".css", ".js"} or path.name == "py.typed"
    }
    assert {"sortify/py.typed", "sortify/reporting/templates/report.html"} <= expected
    assert expected - held == set()
    assert not any(name.startswith(("cli/", "tests/")) for name in held)


def test_wheel_install(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env")
    install(python, wheel)
    check_install(python, tmp_path)


def test_editable_install(sources: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env")
    install(python, "--editable", sources)
    check_install(python, sources)


def test_an_install_from_elsewhere_is_flagged(tmp_path: Path) -> None:
    python = environment(tmp_path / "env")
    for package in FOLDERS:
        (tmp_path / "other" / package).mkdir(parents=True)
        (tmp_path / "other" / package / "__init__.py").touch()
    lent = next((tmp_path / "env").rglob("lent.pth"))
    lent.write_text(str(tmp_path / "other"))
    with pytest.raises(AssertionError, match="other"):
        check_install(python, tmp_path / "env")
