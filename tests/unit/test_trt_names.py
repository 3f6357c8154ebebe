"""Every name of TensorRT's that the code uses, held against the complete lists of three releases' bindings.

The lists were read off the wheels of the bindings; they hold the names of classes and their members, and no more. What
cannot be told from names (argument lists, behaviour) is not proved here.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from resnet_deploy import trt_api

ROOT = Path(__file__).parents[2] / "resnet_deploy"
SOURCES = sorted(
    path for path in ROOT.rglob("*.py") if path.stem.startswith("trt") and path.stem not in ("trt_options",)
)
SURFACES = {
    path.stem: json.loads(path.read_text())["api"] for path in (Path(__file__).parent / "tensorrt_api").glob("*.json")
}
BACKEND_OF = {"tensorrt-10.16": "tensorrt", "tensorrt-11.4": "tensorrt", "tensorrt_rtx-1.7": "tensorrt-rtx"}

# What a variable of this name is, in these modules; a name that begins with an underscore is the same.
VARIABLES = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "refitter": "Refitter",
    "parser_refitter": "OnnxParserRefitter",
    "runtime": "Runtime",
}
WHERE_IT_RUNS = {"config": "IRuntimeConfig", "cache": "IRuntimeCache"}  # in the modules of the runner
MODULE = "trt"


def base_of(node: ast.expr) -> str:
    """The name of a variable, or of an attribute of self; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id.removeprefix("_")
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr.removeprefix("_")
    return ""


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def is_module(node: ast.expr) -> bool:
    return base_of(node) == MODULE or (isinstance(node, ast.Attribute) and node.attr == "module")


def is_asked_for(node: ast.AST) -> bool:
    """Whether it is ``hasattr(value, "name")`` or ``getattr(value, "name", ...)``."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("hasattr", "getattr")
        and isinstance(node.args[1], ast.Constant)
    )


def aliases(tree: ast.AST) -> dict[str, str]:
    """Variables that stand for a class of the module: ``flag = trt.BuilderFlag``."""
    return {
        node.targets[0].id: node.value.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Attribute)
        and is_module(node.value.value)
    }


def members_of_ours(source: str) -> set[str]:
    """Names of the methods and attributes of a module's own classes, some of which wrap TensorRT's."""
    found = set()
    for kind in ast.walk(ast.parse(source)):
        if isinstance(kind, ast.ClassDef):
            for node in ast.walk(kind):
                if isinstance(node, ast.FunctionDef):
                    found.add(node.name)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    found.add(node.target.id)
                elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                    found.add(node.attr)
    return found


OURS = set().union(*(members_of_ours(path.read_text()) for path in SOURCES if path.parent.name == "runners"))


def names_used(source: str, *, running: bool = False) -> Iterator[str]:
    """``Class`` and ``Class.member`` for everything of TensorRT's that a module names."""
    tree = ast.parse(source)
    classes, variables = aliases(tree), VARIABLES | (WHERE_IT_RUNS if running else {})
    for node in ast.walk(tree):
        if is_asked_for(node):
            node = ast.Attribute(node.args[0], node.args[1].value, ast.Load())  # noqa: PLW2901 - asked for by its name
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            continue
        if is_module(node.value):
            yield node.attr
        elif isinstance(node.value, ast.Attribute) and is_module(node.value.value):
            yield f"{node.value.attr}.{node.attr}"
        elif base_of(node.value) in variables and not (running and node.attr in OURS):
            yield f"{variables[base_of(node.value)]}.{node.attr}"
        elif isinstance(node.value, ast.Name) and node.value.id in classes:
            yield f"{classes[node.value.id]}.{node.attr}"


def has(surface: dict[str, list[str]], name: str) -> bool:
    owner, _, member = name.partition(".")
    return owner in surface and (not member or member in surface[owner])


USED = sorted(
    {name for path in SOURCES for name in names_used(path.read_text(), running=path.parent.name == "runners")}
)


def faults(used: list[str]) -> list[str]:
    """Names that a release lacks and that the table of differences does not give to the other flavour."""
    found = []
    for name in used:
        for release, surface in SURFACES.items():
            only_in = trt_api.ONLY_IN.get(name)
            expected = only_in in (None, BACKEND_OF[release])
            if has(surface, name) != expected:
                found.append(f"{name} is {'missing from' if expected else 'in'} {release}")
    return found


def test_there_is_something_to_look_at():
    assert len(SURFACES) == 3
    assert {path.name for path in SOURCES} >= {"trt.py", "trt_api.py", "trt_config.py", "trt_watch.py"}
    assert len(USED) > 70
    assert {"Builder.build_serialized_network", "BuilderFlag.TF32", "IBuilderConfig.clear_flag"} <= set(USED)
    assert {"IExecutionContext.execute_async_v3", "Runtime.deserialize_cuda_engine"} <= set(USED)
    assert {"IProgressMonitor", "HardwareCompatibilityLevel.AMPERE_PLUS", "BuilderFlag.STRIP_PLAN"} <= set(USED)


def test_every_name_is_in_every_release_or_guarded():
    assert faults(USED) == []


def test_the_table_of_differences_is_used_up():
    assert set(trt_api.ONLY_IN) <= set(USED)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag.FP16 is missing from tensorrt-11.4"),
        ("flag = trt.BuilderFlag; flag.FP16", "BuilderFlag.FP16 is missing from tensorrt-11.4"),
        ("config.int8_calibrator = None", "IBuilderConfig.int8_calibrator is missing from tensorrt-11.4"),
        ("builder.build_engine_with_config()", "Builder.build_engine_with_config is missing from tensorrt_rtx-1.7"),
        ("self._runtime.defer_weights_loading", "Runtime.defer_weights_loading is missing from tensorrt-10.16"),
        ("getattr(runtime, 'defer_weights_loading')", "Runtime.defer_weights_loading is missing from tensorrt-10.16"),
        ("api.module.IInt8EntropyCalibrator2", "IInt8EntropyCalibrator2 is missing from tensorrt-11.4"),
        ("engine.max_batch_size", "ICudaEngine.max_batch_size is missing from tensorrt-10.16"),
    ],
)
def test_a_name_that_a_release_lacks_is_found(line, fault):
    assert fault in faults(list(names_used(line)))


def test_a_wrong_entry_in_the_table_is_found(monkeypatch):
    monkeypatch.setattr(trt_api, "ONLY_IN", {"Builder.create_network": "tensorrt-rtx"})
    assert "Builder.create_network is in tensorrt-11.4" in faults(["Builder.create_network"])
    assert "ComputeCapability is missing from tensorrt-10.16" in faults(["ComputeCapability"])
