"""Reading programs out of plans: what they say, and bytes that say nothing."""

import pytest
from compiled_factory import DESCRIPTORS, FALLBACK, HEADER, MAIN, PROGRAM, plan_bytes, program_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_deploy.compiled import program
from resnet_deploy.compiled.layers import BATCH
from resnet_deploy.compiled.plan import read_plan
from resnet_deploy.compiled.program import Block, parse_program
from resnet_deploy.errors import BundleError

# --- the text


def test_words_strings_and_blocks():
    tree = parse_program('head {\n a = 1\n b={ "x y" 2 }\n}\n label bb1: \n c={ d="{=}" e={ } }')
    assert tree.block("head").text("a") == "1"
    assert tree.block("head").words("b") == ("x y", "2")
    assert tree.entries[1:3] == (("", "label"), ("", "bb1:"))
    assert tree.block("c") == Block((("d", "{=}"), ("e", Block(()))))
    assert (tree.text("absent"), tree.words("absent")) == ("", ())


@pytest.mark.parametrize("text", ["a={", "}", "a={ } }", 'a="b', "= 1", "a = = 1", "a=}", "{" * 20 + "}" * 20])
def test_text_of_another_form_is_refused(text):
    with pytest.raises(BundleError, match="a program that"):
        parse_program(text)


def test_depth_up_to_the_limit_is_read():
    assert parse_program("{" * 16 + "}" * 16).blocks()


def test_a_program_that_is_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(program, "MAX_CHARACTERS", 10)
    assert parse_program("a = 1     ")
    with pytest.raises(BundleError, match="11 characters"):
        parse_program("a = 1      ")


# --- what a plan says


def test_kernels_types_and_fusions():
    graph = read_plan(plan_bytes(PROGRAM, FALLBACK))
    assert [(layer.kind, layer.types, layer.fused) for layer in graph.kernels] == [
        ("pointwise", "uint8 -> float16", ("bias",)),
        ("convolution", "float16 x float16 -> float16", ("relu",)),
        ("convolution", "float16 x float16 -> float16", ("bias", "add", "relu")),
        ("matrix multiply", "float16 x float16 -> float32", ("bias",)),
    ]
    assert graph.layers[0].kind == "no-op"
    assert graph.kernels[2].nodes == ("conv2", "add", "relu")
    assert graph.targets == ("8.6", "12.0")
    assert graph.constants_bytes == 1568 + 512 + 4 + 5120
    assert graph.weighted_types() == {"float16 x float16 -> float16": 2, "float16 x float16 -> float32": 1}
    assert graph.fused_counts() == {"bias": 2, "add": 1, "relu": 2}


def test_what_is_on_the_host_and_scratch_space_are_no_operands():
    graph = read_plan(plan_bytes(PROGRAM))
    read = {tensor.name for layer in graph.layers for tensor in layer.inputs}
    assert read == {"images.1", "normal", "stem", "sum", "w1", "w2", "w3", "one"}
    assert {tensor.name for layer in graph.layers for tensor in layer.inputs if tensor.constant} == {
        "w1", "w2", "w3", "one"
    }  # fmt: skip


def test_a_view_bears_the_name_of_what_it_views():
    graph = read_plan(plan_bytes(PROGRAM))
    read, written = graph.kernels[3].inputs[0], graph.kernels[2].outputs[0]
    assert (read.name, read.shape) == (written.name, (BATCH, 256))
    assert written.shape == (BATCH, 16, 4, 4)


def test_activation_bytes_by_hand():
    graph = read_plan(plan_bytes(PROGRAM))
    images, normal, stem, logits = 8 * 8 * 3, 4 * 8 * 8 * 2, 16 * 4 * 4 * 2, 10 * 4
    per_image = (images + normal) + (normal + stem) + (stem + stem + stem) + (stem + logits)  # the sum reads two
    assert graph.activation_bytes(1) == per_image
    assert graph.activation_bytes(8) == 8 * per_image
    assert graph.kernels[1].outputs[0].shape == (BATCH, 16, 4, 4)


def test_a_type_of_unknown_size_gives_no_sum():
    stem = 'name="stem" region="device" stride_order={ 3 0 2 1 } type='
    assert f"{stem}half" in PROGRAM
    float8 = read_plan(plan_bytes(PROGRAM.replace(f"{stem}half", f"{stem}fp8_e4m3")))
    assert float8.kernels[1].types.endswith("-> float8_e4m3fn")
    assert float8.activation_bytes(8) is not None
    graph = read_plan(plan_bytes(PROGRAM.replace(f"{stem}half", f"{stem}odd")))
    assert graph.activation_bytes(1) is None
    assert graph.kernels[1].types == "float16 x float16 -> odd"


def test_an_unknown_operation_is_kept():
    graph = read_plan(plan_bytes(PROGRAM.replace('corrltn={ name="conv1', 'novel={ name="conv1')))
    assert [layer.kind for layer in graph.kernels][:2] == ["pointwise", "other"]


def test_a_fixed_batch_is_a_number():
    graph = read_plan(plan_bytes(PROGRAM.replace('"batch" 16', "2 16")))
    assert graph.kernels[1].outputs[0].shape == (2, 16, 4, 4)


# --- what is no plan, or one of another version


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no program of a whole network"),
        (b"NLYM", "no program of a whole network"),
        (plan_bytes(), "no program of a whole network"),
        (plan_bytes(FALLBACK), "no program of a whole network"),
        (plan_bytes(PROGRAM.replace("version = 5", "version = 6")), "no program of a whole network"),
        (plan_bytes(PROGRAM, PROGRAM), "more than one program"),
        (plan_bytes(HEADER + DESCRIPTORS), "launches nothing"),
        (plan_bytes(PROGRAM[:-3]), "ends inside"),
        (program_bytes(PROGRAM)[:-50], "ends in the middle"),
        (program_bytes(PROGRAM).replace(b"conv1_U1", b"conv1\xff\xff1"), "codec can't decode"),
        (plan_bytes(PROGRAM.replace('dims={ "batch" 10 }', 'dims={ "other" 10 }')), "more of its shapes"),
        (b"NLYM\xa1\xda\x1e\0" + b"\xff" * 8 + PROGRAM.encode(), "no program of a whole network"),  # its size is absurd
    ],
)
def test_bytes_that_are_refused(data, why):
    with pytest.raises(BundleError, match=why) as caught:
        read_plan(data)
    assert "the plan cannot be read" in caught.value.message
    assert "\n" not in caught.value.message


@given(st.binary(max_size=200), st.integers(0, len(PROGRAM) + 100))
@settings(max_examples=60, deadline=None)
def test_noise_is_read_or_refused(noise, where):
    data = plan_bytes(PROGRAM, FALLBACK)
    for candidate in (noise, data[:where], data[:where] + noise + data[where:], data[:where] + noise):
        read_or_refuse(candidate)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_programs_with_words_exchanged_are_read_or_refused(data):
    words = MAIN.split(" ")
    for _ in range(3):
        words[data.draw(st.integers(0, len(words) - 1))] = data.draw(
            st.sampled_from(["{", "}", "=", '"', "9" * 30, "x", ""])
        )
    read_or_refuse(plan_bytes(HEADER + DESCRIPTORS + " ".join(words)))
    read_or_refuse(plan_bytes(" ".join(words) + HEADER + DESCRIPTORS))


def read_or_refuse(data):
    refused = ""
    try:
        graph = read_plan(data)
    except BundleError as error:
        refused = error.message
    if refused:
        assert "the plan cannot be read" in refused
    else:
        graph.activation_bytes(8)
        graph.weighted_types()
        graph.fused_counts()
