"""Plans and layer descriptions, made by hand in the forms that compilers write; no compiler wrote these."""

import struct

# A stem, a residual sum and a classifier in FP16, as TensorRT-RTX 1.7.1 writes programs down.
HEADER = """header {
  version = 5
  n_accelerators = 1
  region = { name=device size=8192 type=user place=accelerator unified=false }
  region = { name=sizes size=648 type=system place=host unified=false }
  region = { name=weights size=100 type=system place=accelerator unified=false constant=true }
  inputs={ "images.1" "{ForeignNode[images.cast...logits]}_shapeInput.1" }
  accelerators={sm86 sm120 }
}
"""
DESCRIPTORS = """descriptors {
  tensor={ dims={ 1 } name="batch" region="sizes" stride_order={ 0 } type=int64 }
  tensor={ dims={ "batch" 8 8 3 } name="images.1" region="" stride_order={ 3 2 1 0 } type=uint8 }
  tensor={ dims={ "batch" 4 8 8 } name="normal" region="device" stride_order={ 3 0 2 1 } type=half }
  tensor={ dims={ "batch" 16 4 4 } name="stem" region="device" stride_order={ 3 0 2 1 } type=half }
  tensor={ dims={ "batch" 16 4 4 } name="sum" region="device" stride_order={ 3 0 2 1 } type=half }
  sub_tensor={ dims={ "batch" 256 } name="sum^deref" base="sum" stride_order={ 1 0 } type=half }
  tensor={ dims={ "batch" 10 } name="logits.1" region="" stride_order={ 1 0 } type=float }
  tensor={ const_payload_size=1568 dims={ 16 4 7 7 } name="w1" region=weights stride_order={ 3 0 2 1 } type=half }
  tensor={ const_payload_size=512 dims={ 16 16 1 1 } name="w2" region=weights stride_order={ 3 0 2 1 } type=half }
  tensor={ const_payload_size=4 dims={ 1 } name="one" region=weights stride_order={ 0 } type=float }
  tensor={ const_payload_size=5120 dims={ 256 10 } name="w3" region=weights stride_order={ 1 0 } type=half }
  tensor={ is_scratchspace=1 dims={ 1 } name="scratch" region="device" stride_order={ 0 } type=int8 }
}
"""
MAIN = """main {
 label bb1:
  shape_call={ name="sizes" stream=0  layers="" subg_id=0 }
  function={ name=__myl_CastTranAddMulCastReplConc input_args={ "images.1" "batch" } output_args={ "normal" }
    grid = { 12 1 1 } cond_fqn = { exec_cond = "x" tile_dims={} } layers="[ONNX Layer: images.cast]" swap_ab=false }
  corrltn={ name="conv1_U1" output={"stem" } input={"normal" "w1" "one" } scratchspace={"scratch" } relu=true
    bias=false accu=false quantize=false layers="[ONNX Layer: conv1][ONNX Layer: conv1.relu]" }
  corrltn={ name="conv2_U2" output={"sum" } input={"stem" "w2" "one" "stem" } scratchspace={"scratch" } relu=true
    bias=true accu=true quantize=false layers="[ONNX Layer: conv2][ONNX Layer: add][ONNX Layer: relu]" }
  runtime_fusion={ name=__myl_FcAddCast input_args={ "sum^deref" "w3" "batch" } output_args={ "logits.1" } binary=0
    layers="[ONNX Layer: fc][ONNX Layer: logits.float]" backbone=gemm }
}
"""
PROGRAM = HEADER + DESCRIPTORS + MAIN
FALLBACK = 'header {\n  version = 4\n}\nmain {\n  fully_connected={ name="fc" output={ "logits.1" } }\n}\n'


def program_bytes(text):
    return b"NLYM\xa1\xda\x1e\0" + struct.pack("<Q", len(text) + 1) + text.encode() + b"\0"


def plan_bytes(*programs):
    """A container around programs, which is not read; with a mark that begins no program, as weights may have one."""
    weights = b"\x01\x02NLYM" + bytes(64)
    return b"vtrt" + bytes(40) + weights + b"".join(map(program_bytes, programs)) + weights


# --- the engine inspector's JSON, after TensorRT's documentation; no engine was asked

INT8, HALF, FLOAT = "Thirty-two wide channel vectorized row major Int8 format", "Row major linear FP16 format", "Float"
_SPLIT = {INT8: ("Int8", "kCHW32"), HALF: ("Half", "kLINEAR"), FLOAT: ("Float", "kLINEAR")}


def tensor(version, name, words, shape=(8, 16, 4, 4)):
    fields = {"Name": name, "Location": "Device", "Dimensions": list(shape)}
    if version == 10:
        return fields | {"Format/Datatype": words}
    dtype, layout = _SPLIT[words]
    return fields | {"Format": layout, "Datatype": dtype}


def inspected_layer(version, name, layer_type, inputs, output, **parameters):
    """One layer; inputs and output are pairs of a name and what 10.x calls its format."""
    tensors = {"Inputs": [tensor(version, *one) for one in inputs], "Outputs": [tensor(version, *output)]}
    return {"Name": name, "LayerType": layer_type, **tensors, **parameters, "TacticValue": "0x0"}


def inspected_conv(version, name, inputs, output, *, weights="Int8", relu=True):
    return inspected_layer(
        version, name, "CaskConvolution", inputs, output,
        Weights={"Type": weights, "Count": 4096}, Activation="RELU" if relu else "NONE", HasBias=1, HasReLU=int(relu),
        TacticName="made_up", Metadata=f"[ONNX Layer: {name}]\x1e[ONNX Layer: {name}.relu]",
    )  # fmt: skip


def inspected_engine(version, layers, inputs=("images",), outputs=("logits",)):
    if version == 10:
        return {"Layers": layers, "Bindings": [*inputs, *outputs]}
    tensors = [{"Name": name, "IOMode": "Input", "DataType": "Float"} for name in inputs]
    tensors += [{"Name": name, "IOMode": "Output", "DataType": "Float"} for name in outputs]
    return {"Layers": layers, "I/O Tensors": tensors}


def int8_layers(version):
    """Stem, a block and a classifier as the documented placement of Q/DQ is said to fuse."""
    return [
        inspected_layer(version, "images.quantize", "Reformat", [("images", FLOAT)], ("q0", INT8), Origin="QDQ"),
        inspected_conv(version, "conv1", [("q0", INT8)], ("q1", INT8)),
        inspected_conv(version, "layer1.conv1", [("q1", INT8)], ("q2", INT8)),
        inspected_conv(version, "layer1.conv2", [("q2", INT8), ("q1", INT8)], ("x3", HALF)),
        inspected_layer(version, "avgpool", "CaskPooling", [("x3", HALF)], ("x4", HALF), ParameterType="Pooling"),
        inspected_layer(version, "copy", "NoOp", [("x4", HALF)], ("x5", HALF)),
        inspected_layer(version, "fc", "gemm", [("x5", HALF), ("fc.weight", HALF, (16, 10))], ("x6", HALF, (8, 10))),
        inspected_layer(version, "logits.float", "Reformat", [("x6", HALF)], ("logits", FLOAT), Origin="CAST"),
    ]
