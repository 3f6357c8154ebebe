"""Plans without weights: the lowered graph in the bundle gives them back before the first context is made.

On the stand-ins, which prove logic and no hardware; that TensorRT's refitted engines compute the same is for a GPU.
"""

import dataclasses

import msgspec
import pytest
from cuda_stand_in import CudaStandIn
from test_trt_loading import make_bundle
from trt_stand_in import Severity, TrtStandIn, plan

from resnet_deploy import artifact
from resnet_deploy.bundle import LOWERED, HashChain
from resnet_deploy.cuda.runtime import Cuda
from resnet_deploy.errors import BundleError, DeviceError
from resnet_deploy.runners.trt_checks import read_graph
from resnet_deploy.runners.trt_engine import ContextOptions, TrtEngine

GRAPH = b"the lowered graph"


class Refitting(TrtStandIn):
    """With refitters; they take ``GRAPH`` and nothing else."""

    def __init__(self, cuda) -> None:
        super().__init__(cuda)
        self.done = []
        trt = self

        class Refitter:
            def __init__(self, engine, logger):
                assert engine in trt.engines
                assert engine.contexts == []
                self.logger = logger

            def refit_cuda_engine(self):
                trt.done.append("engine")
                return trt.done == ["graph", "engine"]

        class OnnxParserRefitter:
            def __init__(self, refitter, logger):
                assert isinstance(refitter, Refitter)
                self.logger = logger

            def refit_from_bytes(self, model):
                if model != GRAPH:
                    self.logger.log(Severity.ERROR, "the model has other weights")
                    return False
                trt.done.append("graph")
                return True

        self.Refitter, self.OnnxParserRefitter = Refitter, OnnxParserRefitter


@pytest.fixture
def trt():
    return Refitting(CudaStandIn())


def load(trt, **options):
    return TrtEngine(trt.api(), plan(), Cuda(0, trt.cuda), ContextOptions(**options))


def test_weights_go_back_in_first(trt):
    load(trt, weights=GRAPH).close()
    assert trt.done == ["graph", "engine"]


def test_a_whole_plan_is_left_alone(trt):
    load(trt).close()
    assert trt.done == []


def test_other_weights_are_an_error_in_tensorrts_words(trt):
    with pytest.raises(DeviceError, match="refit_from_bytes failed: the model has other weights"):
        load(trt, weights=b"another graph")


@pytest.mark.parametrize("allowed", [False, True])
def test_code_of_the_host_is_run_only_where_it_is_asked_for(trt, allowed):
    engine = load(trt, host_code=allowed)
    assert getattr(engine._runtime, "engine_host_code_allowed", False) == allowed
    engine.close()


def stripped(folder, graph):
    bundle = make_bundle(folder, plan(), backend="tensorrt")
    (folder / LOWERED).write_bytes(graph)
    chain = HashChain(weights="", onnx="", lowered=artifact.sha256_bytes(GRAPH), engine="")
    return dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, chain=chain))


def test_the_graph_is_held_against_its_digest(tmp_path):
    assert read_graph(stripped(tmp_path, GRAPH)) == GRAPH
    with pytest.raises(BundleError, match=r"lowered\.onnx was altered") as caught:
        read_graph(stripped(tmp_path, b"another graph"))
    assert caught.value.hint.startswith("build it again: resnet-deploy build")
