"""The C++ engine and its TensorRT runner, by programs that hold their own checks (doctest).

TensorRT's is tested on a stand-in of TensorRT and of the CUDA runtime, written for it: no part of it ever ran on a GPU.
"""

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest
from core_factory import CPP, compile_cpp

HERE = Path(__file__).parent
STAND_IN = HERE / "trt_stand_in"
API = Path(__file__).parents[1] / "unit" / "tensorrt_api"
NEITHER = ("-DRESNET_DEPLOY_WITH_OPENVINO=0", "-DRESNET_DEPLOY_WITH_TENSORRT=0")
THREADS = ("-fno-sanitize=address", "-fsanitize=thread")
# Checks of every access take the compiler longest, and see little that the others do not where no input is hostile.
LIGHTER = ("-fno-sanitize=null,vptr,alignment,object-size",)

# Names of C++ where they are not the Python bindings' in another spelling.
PYTHON_NAMES = {
    "get_nb_optimization_profiles": "num_optimization_profiles",
    "get_profile_shape": "get_tensor_profile_shape",
    "get_nb_i_o_tensors": "num_io_tensors",
    "get_i_o_tensor_name": "get_tensor_name",
    "get_tensor_data_type": "get_tensor_dtype",
    "set_engine_host_code_allowed": "engine_host_code_allowed",
    "get_engine_header_size": "engine_header_size",
    "enqueue_v3": "execute_async_v3",
}
RTX_ALONE = {"get_engine_header_size", "get_engine_validity"}
# What is called of TensorRT's objects, by the names that they have in our two files.
CALLS = {
    "tensorrt_plan.hpp": re.compile(r"(?:runtime_?(?:->|\.)|engine_->)([a-z]\w+)\("),
    "tensorrt.hpp": re.compile(r"(?:context_->|\(\*\*engine_\)\.)([a-z]\w+)\("),
}


def run(program):
    """Run a program of checks; return how many it made."""
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return int(re.search(r"assertions: +(\d+)", done.stdout).group(1))


def test_engine(doctest_main, tmp_path):
    program = compile_cpp(
        tmp_path / "engine", HERE / "test_engine.cpp", doctest_main, flags=(*NEITHER, *THREADS, *LIGHTER)
    )
    assert run(program) > 1000


@pytest.mark.parametrize("flavour", [(), ("-DSTAND_IN_RTX",)], ids=["tensorrt", "tensorrt-rtx"])
def test_tensorrt_on_a_stand_in(doctest_main, tmp_path, flavour):
    sources = (HERE / "test_tensorrt.cpp", doctest_main)
    program = compile_cpp(tmp_path / "tensorrt", *sources, includes=[STAND_IN], flags=(NEITHER[0], *LIGHTER, *flavour))
    assert run(program) > 500


def test_each_name_of_tensorrt_is_in_every_release():
    """As test_trt_names does for Python: the bindings' lists, for the C++ names that they stand for."""
    headers = CPP / "include/resnet_deploy"
    called = {name for file, pattern in CALLS.items() for name in pattern.findall((headers / file).read_text())}
    names = {re.sub(r"(?=[A-Z])", "_", name).lower() for name in called} - {"reset"}
    assert len(names) > 12
    for path in sorted(API.glob("*.json")):
        surface = json.loads(path.read_text())["api"]
        members = {member for kind in ("Runtime", "ICudaEngine", "IExecutionContext") for member in surface[kind]}
        lacking = {name for name in names if PYTHON_NAMES.get(name, name) not in members}
        assert lacking == (set() if "rtx" in path.stem else RTX_ALONE), path.stem


def test_options_hold_the_limit_of_python():
    tree = ast.parse((CPP.parent / "specs.py").read_text())
    (most,) = [
        node.value.value for node in tree.body if isinstance(node, ast.AnnAssign) and node.target.id == "MAX_THREADS"
    ]
    assert f"most = {most};" in (CPP / "include/resnet_deploy/options.hpp").read_text()
