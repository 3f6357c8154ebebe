"""Bundles that are damaged, or for another machine."""

import sys
from dataclasses import dataclass, field

import msgspec
import pytest

from resnet_deploy import environment
from resnet_deploy.backends import find_backend
from resnet_deploy.bundle import Bundle, Requirements, open_bundle
from resnet_deploy.capabilities import backend_status
from resnet_deploy.compatibility import check_fits
from resnet_deploy.driver import Gpu, GpuProbe
from resnet_deploy.engine import load
from resnet_deploy.environment import Library
from resnet_deploy.errors import (
    BackendError,
    BundleError,
)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "calibration.json", "build.log"])
def test_altered_file_never_reaches_the_backend(copy_engine, flip_bit, monkeypatch, name):
    bundle = copy_engine("int8")
    flip_bit(bundle / name)
    monkeypatch.setattr("resnet_deploy.engine.open_several", lambda *_: pytest.fail("a backend was asked for"))
    with pytest.raises(BundleError, match=rf"{name} was altered") as caught:
        load(bundle)
    assert "resnet-deploy build" in caught.value.hint


def test_missing_library_is_named_with_its_cure(deployment, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="ONNX Runtime cannot be imported") as caught:
        load(deployment.engines["fp32"])
    assert 'pip install "resnet-deploy[cpu]"' in caught.value.hint


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_engine_for_a_gpu_where_there_is_none(copy_engine, backend):
    run = backend_status(find_backend(backend)).run
    if run.ok:
        pytest.skip(f"{backend} runs here")

    def change(manifest):
        manifest["spec"]["backend"] = backend

    with pytest.raises(BackendError) as caught:
        load(copy_engine("fp32", change=change))
    assert run.reason in caught.value.message or "cannot be imported" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("backend", ["torch", "unheard-of"])
def test_backend_that_runs_no_bundles(copy_engine, backend):
    def change(manifest):
        manifest["spec"]["backend"] = backend

    with pytest.raises(BackendError, match=backend) as caught:
        load(copy_engine("fp32", change=change))
    assert caught.value.hint


@pytest.fixture(scope="module")
def here():
    """A machine with a GPU, an INT8 dot product and one library, whatever this one is."""
    return msgspec.structs.replace(
        environment.collect(),
        cpu=environment.Cpu("Synthetic CPU", 8, ("avx2", "avx512_vnni")),
        gpu=GpuProbe((Gpu("Synthetic GPU", "8.9", 1 << 30),), "13.0"),
        libraries=(Library("engine-maker", "1.2.3"), Library("onnxruntime", "1.0")),
    )


def requiring(deployment, **requires):
    bundle = open_bundle(deployment.engines["fp32"])
    wanted = Requirements(**{"library": "engine-maker"} | requires)
    return Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, requires=wanted))


@dataclass(frozen=True)
class Misfit:
    """A requirement, what is changed about the machine, and the field that the message names."""

    requires: dict
    machine: dict
    message: str = field(default="")


OLD_CPU = {"cpu": environment.Cpu("Synthetic CPU", 8, ("avx2",))}
MISFITS = {
    "version": Misfit({"version": "1.2.4"}, {}, r"requires\.version is engine-maker 1\.2\.4, installed is 1\.2\.3"),
    "int8": Misfit({"int8_dot_product": True}, OLD_CPU, r"requires\.int8_dot_product is true, and this CPU has none"),
    "later version": Misfit(
        {"version": "1.3", "later_versions": True},
        {},
        r"requires\.version is engine-maker 1\.3, or a later one of that major release, installed is 1\.2\.3",
    ),
    "older gpu": Misfit(
        {"least_compute_capability": "12.0"},
        {},
        r"requires\.least_compute_capability is 12\.0, Synthetic GPU has 8\.9",
    ),
    "gpu": Misfit(
        {"compute_capabilities": ("8.6", "12.0")},
        {},
        r"requires\.compute_capabilities is 8\.6, 12\.0, Synthetic GPU has 8\.9",
    ),
}
FITS = {
    "same version": Misfit({"version": "1.2.3"}, {}),
    "any version": Misfit({}, {}),
    "a later version than it was built with": Misfit({"version": "1.1", "later_versions": True}, {}),
    "a later gpu": Misfit({"least_compute_capability": "8.0"}, {}),
    "dot product": Misfit({"int8_dot_product": True}, {}),
    "no dot product needed": Misfit({}, OLD_CPU),
    "one of its GPUs": Misfit({"compute_capabilities": ("8.6", "8.9")}, {}),
    # These are for the runner to say, which knows what to install or that it needs a GPU.
    "library not installed": Misfit({"version": "1.2.4"}, {"libraries": ()}),
    "no GPU": Misfit({"compute_capabilities": ("8.6",)}, {"gpu": GpuProbe(reason="none")}),
}


@pytest.mark.parametrize("case", MISFITS.values(), ids=MISFITS.keys())
def test_field_that_does_not_fit_is_named(deployment, here, case):
    machine = msgspec.structs.replace(here, **case.machine)
    with pytest.raises(BundleError, match=case.message) as caught:
        check_fits(requiring(deployment, **case.requires), machine)
    assert caught.value.hint


@pytest.mark.parametrize("case", FITS.values(), ids=FITS.keys())
def test_machine_that_fits(deployment, here, case):
    check_fits(requiring(deployment, **case.requires), msgspec.structs.replace(here, **case.machine))


def test_misfit_is_found_before_any_file_is_read(copy_engine, monkeypatch):
    def change(manifest):
        manifest["requires"]["int8_dot_product"] = True

    bundle = copy_engine("fp32", change=change)
    monkeypatch.setattr(environment.Cpu, "has_vnni", False)
    monkeypatch.setattr(Bundle, "verify_files", lambda self: pytest.fail("the files were read"))
    with pytest.raises(BundleError, match=r"requires\.int8_dot_product"):
        load(bundle)
