"""The package's rooms: what may import what. Read from the source, so that a lazy import counts like any other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lowres"
ORDER = ["files", "locks", "parameters", "tasks", "models", "methods", "runs", "analysis", "site", "__main__"]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.stat().st_size and path != PACKAGE / "__init__.py"}


def imports(source: str) -> set[str]:
    """The modules of lowres that a source imports anywhere: lazily, for type checking, or at once."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lowres" and not node.level:
            base = node.module.removeprefix("lowres").lstrip(".")
            inner = {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
            found |= (inner & set(MODULES)) or {base}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add(f"relative import of {node.module or '.'}")
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("lowres.") for alias in node.names if alias.name.split(".")[0] == "lowres"}
    return found


GRAPH = {name: imports(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def test_lazy_imports_and_those_for_type_checking_are_seen():
    assert imports("def f():\n    from lowres.runs import status") == {"runs.status"}
    assert imports("if TYPE_CHECKING:\n    from lowres.runs.study import Run, Study") == {"runs.study"}
    assert imports("import lowres.files") == {"files"} and imports("import numpy") == set()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_modules_that_exist_and_stand_to_its_left(module):
    room = ORDER.index(module.split(".")[0])
    assert GRAPH[module] <= set(MODULES), GRAPH[module] - set(MODULES)
    assert all(ORDER.index(other.split(".")[0]) <= room for other in GRAPH[module]), GRAPH[module]


def test_no_modules_import_each_other_in_a_circle():
    def circle(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module):], module]
        return next((found for other in GRAPH[module] if (found := circle(other, [*path, module]))), [])

    assert not [found for module in MODULES if (found := circle(module, []))]


def test_what_notebooks_import_is_there_and_loads_nothing_before_it_is_asked_for():
    heavy = "{'torch', 'pandas', 'transformers', 'matplotlib'} & set(sys.modules)"
    code = f"import sys, lowres; print({heavy}); print(all(getattr(lowres, name) for name in lowres.__all__), 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent).stdout
    assert said == "set()\nTrue True\n"


def test_the_package_is_small_enough_to_hold_in_the_head():
    counted = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert len(counted) <= 64 and max(counted.values()) <= 400
