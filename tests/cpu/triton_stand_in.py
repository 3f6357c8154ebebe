"""Triton in miniature: it reads a model repository as the server does, and answers by ONNX Runtime.

No server runs here. What is checked before a model is loaded is what triton-inference-server checks, in its core
(``model_repository_manager``, ``model_lifecycle``, ``model_config_utils``, ``label_provider``), in
``CompareDimsSupported`` of the backends' common code, and in ``onnxruntime.cc``.
"""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema

DTYPES = {schema.TYPE_UINT8: np.dtype(np.uint8), schema.TYPE_FP32: np.dtype(np.float32)}
ORT_DTYPES = {"tensor(uint8)": schema.TYPE_UINT8, "tensor(float)": schema.TYPE_FP32}


class RefusedError(Exception):
    """The server would not load the model, or not take the request."""


def require(condition, message):
    if not condition:
        raise RefusedError(message)


@dataclass
class Model:
    """A model that was loaded: its configuration, the version that is served, and its labels by output."""

    config: Any
    version: int
    folder: Path
    session: Any = None
    labels: dict = field(default_factory=dict)


class Server:
    """What serves the models of a repository; those that it refuses are in ``refused``, with the reason."""

    def __init__(self, repository):
        self.models, self.refused = {}, {}
        for folder in sorted(path for path in Path(repository).iterdir() if path.is_dir()):  # hidden ones too
            with self.refusals(folder.name):
                self.models[folder.name] = load(folder)
        for name, model in list(self.models.items()):
            with self.refusals(name):
                if model.config.platform == "ensemble":
                    self.check_steps(model)
                self.warm_up(model)

    @contextlib.contextmanager
    def refusals(self, name):
        """Keep why a model is not served."""
        try:
            yield
        except (RefusedError, text_format.ParseError) as error:
            self.refused[name] = str(error)
            self.models.pop(name, None)

    def check_steps(self, model):
        """Hold the models of an ensemble against each other."""
        tensors = {one.name: one for one in model.config.input}
        for step in model.config.ensemble_scheduling.step:
            require(step.model_name in self.models, f"ensemble depends on {step.model_name}, which is not there")
            config = self.models[step.model_name].config
            require(config.max_batch_size == model.config.max_batch_size, "batch sizes differ between steps")
            require({one.name for one in config.input} == set(step.input_map), "an input is not mapped")
            for one in config.input:
                given = tensors.get(step.input_map[one.name])
                require(given is not None, f"nothing gives {step.input_map[one.name]}")
                same = len(given.dims) == len(one.dims) and all(
                    a == b or -1 in (a, b) for a, b in zip(given.dims, one.dims, strict=True)
                )
                require(same and given.data_type == one.data_type, f"{one.name} is given something else")
            for one in config.output:
                tensors[step.output_map[one.name]] = one
        for one in model.config.output:
            require(one.name in tensors, f"nothing gives {one.name}")

    def warm_up(self, model):
        """Make the calls that the configuration asks for."""
        for sample in model.config.model_warmup:
            feed = {}
            for name, given in sample.inputs.items():
                dtype = DTYPES[given.data_type]
                data = (model.folder / "warmup" / given.input_data_file).read_bytes()
                size = int(np.prod(given.dims)) * dtype.itemsize
                require(len(data) >= size, f"warmup expects {size} bytes, has {len(data)}")
                one = np.frombuffer(data[:size], dtype).reshape(given.dims)
                feed[name] = np.repeat(one[None], sample.batch_size, 0) if model.config.max_batch_size else one
            self.infer(model.config.name, feed)

    def infer(self, name, feed):
        """Answer one request: arrays by name in, arrays by name out."""
        require(name in self.models, f"no model {name}: {self.refused.get(name)}")
        model = self.models[name]
        most = model.config.max_batch_size
        require({one.name for one in model.config.input} == set(feed), "inputs differ")
        for one in model.config.input:
            array = feed[one.name]
            require(array.dtype == DTYPES[one.data_type], f"{one.name} is {array.dtype}")
            shape = array.shape[1:] if most else array.shape
            fits = len(shape) == len(one.dims) and all(
                want in (-1, have) for want, have in zip(one.dims, shape, strict=True)
            )
            require(fits, f"{one.name} has the shape {shape}, not {list(one.dims)}")
            require(not most or len(array) <= most, f"a batch of {len(array)}, at most {most}")
        if model.session is not None:
            names = [one.name for one in model.config.output]
            return dict(zip(names, model.session.run(names, feed), strict=True))
        tensors = dict(feed)
        for step in model.config.ensemble_scheduling.step:
            answers = self.infer(step.model_name, {own: tensors[common] for own, common in step.input_map.items()})
            tensors |= {step.output_map[own]: array for own, array in answers.items()}
        return {one.name: tensors[one.name] for one in model.config.output}

    def classify(self, name, feed, count):
        """Ask for classes, as the classification extension has it: value, index and label, the best first."""
        (logits,) = self.infer(name, feed).values()
        (labels,) = self.models[name].labels.values()
        return [[f"{row[i]:f}:{i}:{labels[i]}" for i in np.argsort(-row)[:count]] for row in logits]


def load(folder):
    """Load one model."""
    path = folder / "config.pbtxt"
    require(path.is_file(), "no configuration")
    config = text_format.Parse(path.read_text(), schema.ModelConfig())
    require(config.name == folder.name, "directory name must equal model name")
    versions = [int(one.name) for one in folder.iterdir() if one.name.isdigit() and not one.name.startswith("0")]
    require(versions, "at least one version must be available")
    require(config.version_policy.latest.num_versions == 1, "this server knows one policy")
    model = Model(config, max(versions), folder)
    for one in config.output:
        if one.label_filename:
            lines = (folder / one.label_filename).read_bytes().decode().split("\n")
            require(lines.pop() == "", "the last line has an end")
            model.labels[one.name] = lines
    require(all(0 < size <= config.max_batch_size for size in config.dynamic_batching.preferred_batch_size), "sizes")
    if config.platform != "ensemble":
        file = folder / str(model.version) / config.default_model_filename
        require(file.is_file(), f"unable to find {file}")
        require(config.backend == "onnxruntime", f"this server has no backend {config.backend}")
        model.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        compare(config.input, model.session.get_inputs(), config.max_batch_size, exact=False)
        compare(config.output, model.session.get_outputs(), config.max_batch_size, exact=True)
    return model


def compare(told, found, most, *, exact):
    """Hold what a configuration says against what a graph has."""
    nodes = {node.name: node for node in found}
    require(set(nodes) == {one.name for one in told}, f"the model has {sorted(nodes)}")
    for one in told:
        node = nodes[one.name]
        require(ORT_DTYPES[node.type] == one.data_type, f"{one.name} is {node.type}")
        shape = [size if isinstance(size, int) else -1 for size in node.shape]
        if most:
            require(shape[0] == -1, f"{one.name} has a fixed batch")
            shape = shape[1:]
        fits = len(shape) == len(one.dims) and all(
            have == want or (have == -1 and not exact) for have, want in zip(shape, one.dims, strict=True)
        )
        require(fits, f"{one.name}: the model has {shape}, the configuration {list(one.dims)}")
