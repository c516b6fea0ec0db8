"""The house stands as docs/design.md draws it: floors, no circles, a core that needs numpy only."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("neustream", "vllm_patch", "vllm_plugin", "diffusion_plugin", "agent_plugin", "neusim", "neuserve", "exp")
MAY_IMPORT = {
    "neustream": {"neustream"},
    "vllm_patch": {"vllm_patch", "neustream"},
    "vllm_plugin": {"vllm_plugin", "neustream"},
    "diffusion_plugin": {"diffusion_plugin", "neustream"},
    "agent_plugin": {"agent_plugin", "neustream"},
    "neusim": {"neusim", "vllm_patch", "vllm_plugin", "diffusion_plugin", "neustream"},
    "neuserve": {"neuserve", "neusim", "vllm_patch", "vllm_plugin", "diffusion_plugin", "neustream"},
    "exp": set(PACKAGES),
}
"""What docs/design.md allows each folder to import of the others."""
FRAMEWORKS = {"torch", "vllm", "diffusers", "transformers", "ray"}


def modules() -> dict[str, Path]:
    """Every module of the packages by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, *, at_import: bool = True) -> Iterator[tuple[str, str | None]]:
    """`(module, name)` of each import statement; with `at_import`, of those alone that run when it is imported."""
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo.extend(node.orelse)
            continue
        todo.extend(ast.iter_child_nodes(node))


def arrows(known: dict[str, Path], *, at_import: bool = True) -> dict[str, set[str]]:
    """Which modules of the house each of them imports."""
    found: dict[str, set[str]] = {}
    for module, path in known.items():
        targets = set()
        for target, name in imports(path, at_import=at_import):
            whole = f"{target}.{name}"
            if whole in known:
                targets.add(whole)
            elif target in known:
                targets.add(target)
        found[module] = targets - {module}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph[node]:
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            component = stack[at:]
            del stack[at:]
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_the_search_for_circles_finds_one():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_no_module_imports_itself_by_way_of_others():
    known = modules()
    graph = arrows(known)
    # `from package import submodule` passes through the package's __init__, which may import its own parts.
    inner = {module: {t for t in targets if not module.startswith(f"{t}.")} for module, targets in graph.items()}
    assert circles(inner) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_imports_only_what_stands_below_it(package):
    known = modules()
    graph = arrows(known, at_import=False)
    wrong = {
        f"{module} -> {target}"
        for module, targets in graph.items()
        for target in targets
        if module.split(".")[0] == package and target.split(".")[0] not in MAY_IMPORT[package]
    }
    assert wrong == set()


def test_no_folder_names_a_module_above_it_in_a_string():
    """A program that is started by the name of its module is an arrow too."""
    module = re.compile(rf"({'|'.join(PACKAGES)})(\.\w+)+")
    wrong = {
        f"{name}: {node.value}"
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and module.fullmatch(node.value)
        if node.value.split(".")[0] not in MAY_IMPORT[name.split(".")[0]]
    }
    assert wrong == set()


def test_the_core_imports_numpy_and_the_standard_library_only():
    outside = {
        f"{module}: {target}"
        for module, path in modules().items()
        if module.split(".")[0] == "neustream"
        for target, _ in imports(path, at_import=False)
        if target.split(".")[0] not in {"neustream", "numpy", *sys.stdlib_module_names}
    }
    assert outside == set()


def test_within_the_core_nothing_that_serves_is_imported_by_what_it_serves():
    """catalog and cli stand beside the core: it imports neither, and policies are imported by no vocabulary."""
    graph = arrows(modules(), at_import=False)
    core = {m for m in graph if m.startswith("neustream.") and m.split(".")[1] not in ("catalog", "cli")}
    assert not {f"{m} -> {t}" for m in core for t in graph[m] if t.split(".")[1:2] in (["catalog"], ["cli"])}
    vocabulary = ("route", "slo", "request", "streams", "plan", "latency", "tables", "cost", "history", "records")
    below = {f"neustream.{name}" for name in vocabulary}
    assert not {f"{m} -> {t}" for m in below for t in graph[m] if t.startswith("neustream.policies")}
