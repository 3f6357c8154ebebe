"""C++ programs built by CMake against the package, run beside Python on the same engines and images."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from core_factory import CPP, ROOT

for library in ("torch", "onnx", "onnxruntime", "openvino", "nlohmann_json"):
    pytest.importorskip(library, reason=f"{library} is needed to export, build or run")

from PIL import Image  # noqa: E402

from resnet_deploy.cli import main  # noqa: E402
from resnet_deploy.engine import load  # noqa: E402
from resnet_deploy.errors import BundleError  # noqa: E402
from resnet_deploy.pipeline.building import BuildInputs, build  # noqa: E402
from resnet_deploy.protocols import Silent  # noqa: E402
from resnet_deploy.specs import BatchRange, BuildSpec, CalibrationSpec  # noqa: E402
from resnet_deploy.verify import best_class  # noqa: E402

SANITIZERS = "-O0 -g1 -Wall -Wextra -Werror -fsanitize=address,undefined -fno-sanitize-recover=all"
# What is read is sound: of the checks of every access, those that take the compiler longest are left out.
SANITIZERS += " -fno-sanitize=null,vptr,alignment,object-size"
# Both sides run the same library on the same bytes in the same batches, on as many threads; on another number of
# threads or in streams, sums are taken in another order, which moves logits of about 1 by some 1e-6.
FP32_TOLERANCE = 1e-5


def find_tool(name):
    """CMake or Ninja: PyPI's beside this Python, or the system's."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def configure(source, target, *options):
    """Let CMake configure a project that finds the package."""
    command = [
        *(find_tool("cmake"), "-S", source, "-B", target, "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
        f"-Dresnet-deploy_DIR={CPP / 'cmake'}",
        f"-DRESNET_DEPLOY_SITE_PACKAGES={sysconfig.get_path('purelib')}",
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def build_program(source, target, *options):
    """Build a project's program, which has the project's name."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    done = configure(source, target, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run([find_tool("cmake"), "--build", target], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def classify(tmp_path_factory):
    """The example, as its README builds it but for the optimizer, which takes long, and what debuggers read."""
    target = tmp_path_factory.mktemp("classify")
    flags = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror")
    build_program(ROOT / "examples/cpp", target, *flags)
    return target / "classify"


@pytest.fixture(scope="module")
def logits_program(tmp_path_factory):
    target = tmp_path_factory.mktemp("logits")
    build_program(Path(__file__).parent / "logits", target, f"-DCMAKE_CXX_FLAGS={SANITIZERS}")
    return target / "logits"


@dataclass(frozen=True)
class Engines:
    """OpenVINO's engines of one untrained ResNet-18, and one of ONNX Runtime."""

    fp32: Path
    int8: Path
    onnxruntime: Path


@pytest.fixture(scope="module")
def photograph():
    """A real photograph, (427, 640, 3)."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the photograph is in scikit-learn")
    return np.ascontiguousarray(datasets.load_sample_image("china.jpg"))


@pytest.fixture(scope="module")
def engines(deployment, tmp_path_factory, photograph):
    folder = tmp_path_factory.mktemp("engines")
    for number in range(12):
        (folder / "calibration").mkdir(exist_ok=True)
        Image.fromarray(photograph[number * 20 : number * 20 + 60, :90]).save(folder / "calibration" / f"{number}.png")

    def built(backend, precision, calib=None, **options):
        wanted = BuildSpec(backend=backend, precision=precision, batch=BatchRange(2, 8, 16), **options)
        inputs = BuildInputs(deployment.model, folder / f"{backend}-{precision}", calib)
        return build(inputs, wanted, Silent()).bundle.path

    calibration = CalibrationSpec(max_images=12, correct_biases=False)
    int8 = built("openvino", "int8", str(folder / "calibration"), calibration=calibration)
    return Engines(built("openvino", "fp32"), int8, built("onnxruntime", "fp32"))


@pytest.fixture(scope="module")
def crops(photograph):
    """100 pieces of the photograph, each of 60x90 pixels."""
    places = np.random.default_rng(0).integers(0, (427 - 60, 640 - 90), (100, 2))
    return np.stack([photograph[top : top + 60, left : left + 90] for top, left in places])


def run_sanitized(command, folder):
    """Run a program that has sanitizers and OpenVINO's TBB, whose threads may outlive main with what they observe."""
    suppressions = folder / "suppressions"
    suppressions.write_text("leak:libtbb.so\n")
    # TBB's libraries are opened with RTLD_DEEPBIND, which the address sanitizer forbids, unless TBB is told of it.
    environment = os.environ | {
        "TBB_ENABLE_SANITIZERS": "1",
        "LSAN_OPTIONS": f"suppressions={suppressions}:print_suppressions=0",
    }
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)


def run_logits(program, engine, images, folder, how=("0", "1", "1"), size=()):
    """Have the C++ program compute logits of arrays, prepared or as pixels."""
    (folder / "images").write_bytes(images.tobytes())
    kind = ("pixels",) if size else ("prepared",)
    command = [program, engine, *how, *kind, folder / "images", len(images), folder / "logits", *size]
    done = run_sanitized(command, folder)
    assert done.returncode == 0, done.stderr
    return np.fromfile(folder / "logits", np.float32).reshape(len(images), -1)


def write_ppm(path, pixels):
    path.write_bytes(b"P6\n# a photograph\n%d %d\n255\n" % pixels.shape[1::-1] + pixels.tobytes())
    return path


def test_example_names_the_classes_that_python_names(classify, engines, photograph, tmp_path):
    picture = write_ppm(tmp_path / "china.ppm", photograph)
    done = subprocess.run([classify, engines.fp32, picture], capture_output=True, text=True, check=True)
    with load(engines.fp32) as engine:
        (expected,) = engine.classify([Image.fromarray(photograph)])
    assert [line.split() for line in done.stdout.splitlines()] == [
        [f"{one.probability:.2%}", one.label] for one in expected
    ]


def test_example_replays_the_golden_vectors(classify, engines):
    done = subprocess.run([classify, engines.fp32, "--golden"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("8 golden images, largest difference of a logit ")


@pytest.mark.parametrize("case", ["altered", "onnxruntime", "nowhere", "no picture", "usage"])
def test_example_says_what_is_wrong(classify, engines, tmp_path, case):
    altered = shutil.copytree(engines.fp32, tmp_path / "altered")
    data = bytearray((altered / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (altered / "model.onnx").write_bytes(data)
    (tmp_path / "text.ppm").write_text("P5 of another kind")
    arguments, message = {
        "altered": ((altered, "--golden"), f"error: {altered}: model.onnx was altered"),
        "onnxruntime": ((engines.onnxruntime, "--golden"), "error: this build runs no onnxruntime engines"),
        "nowhere": ((tmp_path / "nowhere", "--golden"), f"error: {tmp_path / 'nowhere'} is not an engine bundle"),
        "no picture": ((engines.fp32, tmp_path / "text.ppm"), f"error: {tmp_path / 'text.ppm'} is not a PPM of 8 bits"),
        "usage": ((), "usage: classify"),
    }[case]
    done = subprocess.run([classify, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    if case == "altered":  # Python refuses it too
        with pytest.raises(BundleError):
            load(altered)


def test_openvino_gets_the_bytes_that_were_checked(logits_program, engines, tmp_path):
    """What becomes of the file after every file was verified: opening the engine holds what it reads, once more."""
    bundle = shutil.copytree(engines.fp32, tmp_path / "bundle")
    data = bytearray((bundle / "model.onnx").read_bytes())
    for expected in (0, 2):
        done = run_sanitized([logits_program, "unverified", bundle], tmp_path)
        assert done.returncode == expected, done.stderr
        data[len(data) // 2] ^= 1
        (bundle / "model.onnx").write_bytes(data)
    assert "model.onnx was altered" in done.stderr


def test_logits_of_pixels_are_those_of_python(logits_program, engines, crops, tmp_path):
    got = run_logits(logits_program, engines.fp32, crops, tmp_path, size=(90, 60))
    with load(engines.fp32) as engine:
        expected = engine([Image.fromarray(one) for one in crops])
    assert np.abs(expected).max() > 0.1
    assert np.abs(got - expected).max() <= FP32_TOLERANCE
    # What the tolerance is worth: one pixel of 255 more on every image is beyond it.
    with load(engines.fp32) as engine:
        brighter = engine([Image.fromarray(np.minimum(one, 254) + 1) for one in crops])
    assert np.abs(brighter - expected).max() > FP32_TOLERANCE


def test_int8_agrees_with_python_on_prepared_images(logits_program, engines, crops, tmp_path):
    with load(engines.int8) as engine:
        images = engine.prepare([Image.fromarray(one) for one in crops])
        expected = engine(images)
    got = run_logits(logits_program, engines.int8, images, tmp_path)
    # One step of a quantized activation may fall the other way where sums are taken in another order.
    assert (best_class(got) == best_class(expected)).mean() >= 0.99
    assert np.abs(got - expected).max() <= 0.05 * np.abs(expected).max()


def test_several_callers_and_requests_give_the_same_answers(logits_program, engines, crops, tmp_path):
    with load(engines.fp32) as engine:
        images = engine.prepare([Image.fromarray(one) for one in crops[:33]])  # a remainder of one, below the least
        expected = engine(images)
    got = run_logits(logits_program, engines.fp32, images, tmp_path, how=("2", "2", "3"))
    assert np.abs(got - expected).max() <= FP32_TOLERANCE


PROJECT = "cmake_minimum_required(VERSION 3.24)\nproject(p LANGUAGES CXX)\n"


def test_cmake_says_what_is_missing(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    text = PROJECT + "find_package(resnet-deploy {})\n"
    wanted = {
        "REQUIRED COMPONENTS TensorRT": "TensorRT with its headers (set TensorRT_ROOT)",
        "REQUIRED COMPONENTS ONNXRuntime": "the components are OpenVINO and TensorRT",
        "0.2 REQUIRED": 'compatible with requested version "0.2"',
    }
    for number, (arguments, message) in enumerate(wanted.items()):
        (source / "CMakeLists.txt").write_text(text.format(arguments))
        done = configure(source, tmp_path / str(number))
        assert done.returncode != 0
        assert message in " ".join(done.stderr.split())
    (source / "CMakeLists.txt").write_text(text.format("REQUIRED OPTIONAL_COMPONENTS TensorRT"))
    assert configure(source, tmp_path / "optional").returncode == 0


def test_cmake_says_the_same_of_a_target_that_is_there(tmp_path):
    """A second find_package, as a subdirectory of another origin has it."""
    asked = {
        "COMPONENTS OpenVINO": "1 1 0",
        "": "1 1 0",
        "OPTIONAL_COMPONENTS TensorRT": "1 1 0",
        "COMPONENTS TensorRT": "0 1 0",
        "COMPONENTS OpenVINO TensorRT": "0 1 0",
        "COMPONENTS Abacus": "0 1 0",
    }
    found = '"${resnet-deploy_FOUND} ${resnet-deploy_OpenVINO_FOUND} ${resnet-deploy_TensorRT_FOUND}"'
    say = f'string(REPLACE "TRUE" "1" said {found})\nstring(REPLACE "FALSE" "0" said "${{said}}")\n'
    say += 'message(STATUS "${said}.")\n'
    lines = [f"find_package(resnet-deploy {words})\n{say}" for words in ("COMPONENTS OpenVINO", *asked)]
    (tmp_path / "CMakeLists.txt").write_text(PROJECT + "".join(lines))
    done = configure(tmp_path, tmp_path / "build")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"-- ([01] [01] [01])\.", done.stdout) == ["1 1 0", *asked.values()]
    assert "left out: name it there too" in " ".join(done.stderr.split())


def test_cmake_warns_where_there_is_no_backend(tmp_path):
    words = "no backend was found, and without one no engine can be opened"
    without = "-DCMAKE_DISABLE_FIND_PACKAGE_OpenVINO=ON"
    for number, (asked, options, warns) in enumerate(
        [("", [without], True), ("QUIET", [without], False), ("", [], False)]
    ):
        (tmp_path / "CMakeLists.txt").write_text(PROJECT + f"find_package(resnet-deploy {asked})\n")
        done = configure(tmp_path, tmp_path / str(number), *options)
        assert done.returncode == 0, done.stderr
        said = " ".join(done.stderr.split())
        assert (words in said) == warns, said
        assert ("set RESNET_DEPLOY_SITE_PACKAGES to" in said) == warns


def test_cmake_finds_tensorrt_by_its_headers(tmp_path):
    """A folder with the names of an SDK: what CMake makes of it, and not whether it links."""
    for flavour, library in {"": "nvinfer", "#define TRT_MAJOR_RTX 1": "tensorrt_rtx"}.items():
        sdk, source = tmp_path / library / "sdk", tmp_path / library / "source"
        for folder in (
            sdk / "include",
            sdk / "lib",
            source,
            sdk / "cuda/include",
            sdk / "cuda/bin",
            sdk / "cuda/lib64",
        ):
            folder.mkdir(parents=True)
        (sdk / "include/NvInfer.h").write_text("")
        (sdk / "include/NvInferVersion.h").write_text(flavour)
        (sdk / f"lib/lib{library}.so").write_text("")
        (source / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.24)\nproject(p LANGUAGES CXX)\n"
            "add_library(CUDA::cudart INTERFACE IMPORTED)\n"
            "find_package(resnet-deploy REQUIRED COMPONENTS TensorRT)\n"
            "get_target_property(libraries resnet-deploy::resnet-deploy INTERFACE_LINK_LIBRARIES)\n"
            "get_target_property(defined resnet-deploy::resnet-deploy INTERFACE_COMPILE_DEFINITIONS)\n"
            'message(STATUS "${libraries} | ${defined}")\n'
        )
        done = configure(source, tmp_path / library / "build", f"-DTensorRT_ROOT={sdk}")
        assert done.returncode == 0, done.stderr
        assert f"lib{library}.so;CUDA::cudart" in done.stdout
        assert "openvino" not in done.stdout.split("|")[0].rsplit("--", 1)[1]  # it was not among the components


def test_command_line_names_the_cmake_folder(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--cmake-dir"])
    assert ended.value.code == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert (Path(line) / "resnet-deployConfig.cmake").is_file()
