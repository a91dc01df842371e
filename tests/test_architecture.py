"""Who may import whom, read from the source; and what importing the engine costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WINDOW_LIBRARIES = {"imgui", "glfw", "OpenGL"}
TORCH_LIBRARIES = {"torch", "transformers", "optimum"}
NUMBA_LIBRARIES = {"numba", "llvmlite"}
ONNX_LIBRARIES = {"onnx", "onnxruntime", "onnxscript"}
JAX_LIBRARIES = {"jax", "jaxlib"}
OPENVINO_LIBRARIES = {"openvino", "nncf"}
HEAVY_LIBRARIES = set[str]().union(
    *(TORCH_LIBRARIES, NUMBA_LIBRARIES, ONNX_LIBRARIES, JAX_LIBRARIES, OPENVINO_LIBRARIES)
)
# These modules exist to use one of the libraries, and are imported only when it is wanted.
TORCH_MODULES = re.compile(
    r"engine\.(backends\.torch_\w+|onnx\.graph|quality|training\.(?!("
    r"advice|checkpoints|config|data|launch|overlap|reading|run_folder|run_log|token_store"
    r")$)\w+)(\.|$)"
)
ONNX_MODULES = re.compile(r"engine\.(backends\.onnx_backend|onnx\.export|onnx\.graph)(\.|$)")
NUMBA_MODULES = re.compile(r"engine\.(backends\.native_backend|native)(\.|$)")
JAX_MODULES = re.compile(r"engine\.(backends\.jax_backend|jax_model|jax_runtime)(\.|$)")
OPENVINO_MODULES = re.compile(r"engine\.(backends\.openvino_backend|openvino\.graph)(\.|$)")
USERS = {
    "torch": (TORCH_LIBRARIES, TORCH_MODULES),
    "numba": (NUMBA_LIBRARIES, NUMBA_MODULES),
    "onnx": (ONNX_LIBRARIES, ONNX_MODULES),
    "jax": (JAX_LIBRARIES, JAX_MODULES),
    "openvino": (OPENVINO_LIBRARIES, OPENVINO_MODULES),
}
# Earlier layers use later ones, never the reverse.
LAYERS = ("main", "app", "engine.worker", "engine.decoding", "engine.backends", "engine.native")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path
    for path in [ROOT / "main.py", *(ROOT / "engine").rglob("*.py"), *(ROOT / "app").rglob("*.py")]
}


@cache
def imported_modules(module: str, *, at_top_level: bool = False) -> list[str]:
    """Dotted names that `module` imports: all, or those that run when it is imported."""
    return list(_imported(module, at_top_level))


def _imported(module: str, at_top_level: bool) -> Iterator[str]:
    path = SOURCES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (at_top_level and (deferred or for_types)):
            pending.extend(ast.iter_child_nodes(node))


def top(name: str) -> str:
    return name.partition(".")[0]


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_the_sources_are_found() -> None:
    assert {"main", "engine", "engine.config", "app.window.state"} <= SOURCES.keys()


@pytest.mark.parametrize("module", [name for name in SOURCES if top(name) == "engine"])
def test_engine_knows_no_application(module: str) -> None:
    forbidden = {"app", "main", "examples", "testing", "fastapi", "uvicorn", "starlette"}
    forbidden |= WINDOW_LIBRARIES
    assert not {name for name in imported_modules(module) if top(name) in forbidden}


def test_only_the_window_package_uses_window_libraries() -> None:
    users = {
        module
        for module in SOURCES
        if any(top(name) in WINDOW_LIBRARIES for name in imported_modules(module))
    }
    assert {module for module in users if not inside(module, "app.window")} == set()


def test_state_and_its_reducer_are_drawn_by_nobody() -> None:
    assert not {
        name for name in imported_modules("app.window.state") if top(name) in WINDOW_LIBRARIES
    }


@pytest.mark.parametrize("lower", range(1, len(LAYERS)))
def test_layers_import_downwards(lower: int) -> None:
    upper = LAYERS[:lower]
    upward = {
        (module, name)
        for module in SOURCES
        if inside(module, LAYERS[lower])
        for name in imported_modules(module)
        if any(inside(name, layer) for layer in upper)
    }
    assert not upward


@pytest.mark.parametrize(
    ("libraries", "users"),
    list(USERS.values()),
    ids=list(USERS),
)
def test_heavy_libraries_are_imported_at_module_level_only_by_their_users(
    libraries: set[str], users: re.Pattern[str]
) -> None:
    eager = {
        (module, name)
        for module in SOURCES
        if not users.match(module)
        for name in imported_modules(module, at_top_level=True)
        if top(name) in libraries
    }
    assert not eager


@pytest.mark.parametrize("users", [NUMBA_MODULES, JAX_MODULES], ids=["numba", "jax"])
def test_what_is_not_pytorch_needs_no_torch(users: re.Pattern[str]) -> None:
    assert not {
        (module, name)
        for module in SOURCES
        if users.match(module)
        for name in imported_modules(module)
        if top(name) in TORCH_LIBRARIES
    }


def test_importing_the_engine_and_the_command_line_loads_nothing_heavy() -> None:
    """The static rule above, but for what the imports bring in indirectly."""
    modules = [
        name
        for name in sorted(SOURCES)
        if not any(users.match(name) for _, users in USERS.values())
        and (not inside(name, "app.window") or name == "app.window.state")
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(*({HEAVY_LIBRARIES | WINDOW_LIBRARIES!r} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_every_library_in_use_is_a_requirement() -> None:
    distribution_of = {
        "OpenGL": "PyOpenGL",
        "prometheus_client": "prometheus-client",
        "sse_starlette": "sse-starlette",
    }
    lists = [ROOT / f"requirements{extra}.txt" for extra in ("", "-jax", "-openvino", "-ray")]
    lines = [line for file in lists for line in file.read_text().splitlines()]
    required = {re.split(r"[\[=]", line)[0].lower() for line in lines if "==" in line}
    used = {top(name) for module in SOURCES for name in imported_modules(module)}
    foreign = used - set(sys.stdlib_module_names) - {"main", "app", "engine"}
    assert {distribution_of.get(name, name).lower() for name in foreign} <= required


def test_every_requirement_is_pinned_and_written_once() -> None:
    for extra in ("", "-dev", "-jax", "-openvino", "-ray"):
        file = f"requirements{extra}.txt"
        lines = [line for line in (ROOT / file).read_text().splitlines() if line]
        pins = [line for line in lines if not line.startswith("#")]
        unpinned = [p for p in pins if not re.fullmatch(r"[\w-]+(\[\w+\])?==\d[\w.]*", p)]
        assert pins and not unpinned
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    dynamic = project["tool"]["setuptools"]["dynamic"]
    assert dynamic["dependencies"] == {"file": ["requirements.txt"]}
    assert dynamic["optional-dependencies"] == {
        "dev": {
            "file": [f"requirements-{extra}.txt" for extra in ("dev", "jax", "openvino", "ray")]
        },
        "jax": {"file": ["requirements-jax.txt"]},
        "openvino": {"file": ["requirements-openvino.txt"]},
        "ray": {"file": ["requirements-ray.txt"]},
    }
    assert "dependencies" not in project["project"]
    assert project["project"]["requires-python"] == "==3.11.*"
