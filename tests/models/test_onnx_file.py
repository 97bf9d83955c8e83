"""Nets read from ONNX files: against the torch nets they were exported from, against ONNX's own evaluator operator by
operator, and through everything that is done to a net afterwards."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from edgewise.errors import ModelError
from edgewise.models import config as configs
from edgewise.models.build import build
from edgewise.models.onnx.file import load_onnx, sqnr_db
from edgewise.models.onnx.program import OnnxNet
from edgewise.models.onnx.read import parts

SHAPE, CLASSES = (3, 32, 32), 10
NETS = {
    "resnet": configs.CifarResNet(depth=8, width=8),
    "mobilenet": configs.MobileNetV2(stem="cifar", width_multiplier=0.25),
    "vit": configs.ViT(dim=32, depth=2, heads=2, patch=8),
}
Exports = Callable[[str, str], Path]


def _stirred(net: nn.Module) -> nn.Module:
    """As after training: BatchNorm that does something."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return net.eval()


def torch_net(name: str) -> nn.Module:
    torch.manual_seed(3)
    return _stirred(build(NETS[name], SHAPE, CLASSES))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """``exported("resnet", "dynamic")``: the net's file, by plain torch.onnx.export."""
    root = tmp_path_factory.mktemp("onnx")

    def export(name: str, how: str) -> Path:
        path = root / f"{name}-{how}.onnx"
        if path.exists():
            return path
        net, ones = torch_net(name), torch.zeros(1 if how == "static" else 2, *SHAPE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if how == "old":
                axes = {"x": {0: "batch"}}
                torch.onnx.export(
                    net, (ones,), path, dynamo=False, input_names=["x"], dynamic_axes=axes, opset_version=13
                )
            else:
                dims = ({0: torch.export.Dim("batch")},) if how == "dynamic" else None
                torch.onnx.export(net, (ones,), path, dynamo=True, dynamic_shapes=dims, verbose=False)
        return path

    return export


# An export takes seconds: each exporter with each kind of net that it writes differently.
PAIRS = [
    *(("resnet", "dynamic"), ("resnet", "static"), ("resnet", "old"), ("mobilenet", "static"), ("mobilenet", "old")),
    *(("vit", "dynamic"), ("vit", "static"), ("vit", "old")),
]


@pytest.mark.parametrize(("name", "how"), PAIRS)
def test_a_net_comes_back_from_its_file(exported: Exports, name: str, how: str) -> None:
    net, original = load_onnx(exported(name, how)), torch_net(name)
    for count in (1, 5):
        inputs = torch.randn(count, *SHAPE)
        with torch.no_grad():
            expected = original(inputs)
            torch.testing.assert_close(net(inputs), expected, rtol=0, atol=1e-5 * float(expected.abs().max()) + 1e-7)


@pytest.mark.parametrize(("name", "how"), PAIRS)
def test_layers_have_the_names_and_kinds_they_had_in_torch(exported: Exports, name: str, how: str) -> None:
    found = dict(load_onnx(exported(name, how)).named_modules())
    kinds = (nn.Conv2d, nn.Linear, nn.LayerNorm, nn.GELU)
    layers = {at: type(module) for at, module in torch_net(name).named_modules() if isinstance(module, kinds)}
    assert len(layers) >= 8
    assert {at: type(found.get(at)) for at in layers} == layers


def test_a_saved_net_needs_no_file_and_names_none(exported: Exports, tmp_path: Path) -> None:
    from edgewise.compress.saved import Description, describe, load_model, save_model

    file, original = tmp_path / "moved-away.onnx", exported("vit", "dynamic")
    shutil.copyfile(original, file)
    weights = original.with_name(original.name + ".data")  # where the exporter puts larger tensors
    shutil.copyfile(weights, tmp_path / weights.name)
    assert parts(file) == [file, tmp_path / weights.name]
    config = configs.OnnxFile(kind="onnx", path=file)
    net = build(config, SHAPE, CLASSES)
    description = Description(model=config, input_shape=SHAPE, classes=CLASSES)
    save_model(net, description, tmp_path / "saved")
    for part in parts(file):
        part.unlink()
    again, read = load_model(tmp_path / "saved")
    assert describe(read) == "onnx_graph, 3x32x32 -> 10"
    assert str(tmp_path) not in (tmp_path / "saved" / "architecture.json").read_text()
    assert [name for name, _ in again.named_modules()] == [name for name, _ in net.named_modules()]
    inputs = torch.randn(3, *SHAPE)
    assert torch.equal(again(inputs), net(inputs))
    # Saved again, it is the same bytes: a run's stages depend on it.
    save_model(again, read, tmp_path / "twice")
    for part in ("architecture.json", "model.safetensors"):
        assert (tmp_path / "twice" / part).read_bytes() == (tmp_path / "saved" / part).read_bytes()


def test_it_is_quantized_and_exported_like_any_net(exported: Exports, tmp_path: Path) -> None:
    from edgewise.compress.quantization.insert import insert_quantizers, quantizers
    from edgewise.deploy.export import export_float, export_qdq

    samples = np.random.default_rng(0).standard_normal((8, *SHAPE), dtype=np.float32)
    ours, theirs = load_onnx(exported("resnet", "dynamic")), torch_net("resnet")
    mine, original = (insert_quantizers(net, samples) for net in (ours, theirs))
    # The same quantizers in the same places: whatever follows the calls of a net finds the names it has in torch.
    assert {name.rsplit("__", 1)[0] for name in quantizers(mine) if "post_hooks.x" not in name} == {
        name.rsplit("__", 1)[0] for name in quantizers(original) if "post_hooks.x" not in name
    }
    with torch.no_grad():  # sums in another order: a value on a tie may round to the other side
        answers = [net(torch.from_numpy(samples)).numpy() for net in (original, mine)]
    assert sqnr_db(*answers) > 30
    export_float(ours, SHAPE, tmp_path / "float.onnx")
    export_qdq(mine, SHAPE, tmp_path / "int8.onnx", signed=False)
    names = [node.name for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert "layer1.0.conv1" in names


def test_it_is_pruned_like_any_net_and_saved(exported: Exports, tmp_path: Path) -> None:
    from edgewise.compress.config import Prune
    from edgewise.compress.pruning.prune import prune
    from edgewise.compress.saved import ChannelPlan, Description, load_model, save_model

    config = configs.OnnxFile(kind="onnx", path=exported("resnet", "static"))
    net = build(config, SHAPE, CLASSES)
    pruned = prune(net, Prune(kind="prune", macs_ratio=0.6), SHAPE, round_to=1, seed=0)
    assert pruned.macs_after <= 0.62 * pruned.macs_before
    description = Description(model=config, input_shape=SHAPE, classes=CLASSES, edits=(ChannelPlan(plan=pruned.plan),))
    save_model(net, description, tmp_path)
    again, _ = load_model(tmp_path)
    inputs = torch.randn(2, *SHAPE)
    assert torch.equal(again(inputs), net.eval()(inputs))


# One operator a graph: attributes, shapes of constant inputs, the input's shape without the batch, opset.
IMAGE = (4, 6, 8)
Made = tuple[str, dict[str, object], list[NDArray[np.generic]], tuple[int, ...], int]


def numbers(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def whole(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


F = np.float32
OPS: dict[str, Made] = {
    "Conv same_upper": ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [numbers(5, 4, 3, 3)], IMAGE, 20),
    "Conv uneven": ("Conv", {"pads": [0, 1, 2, 0]}, [numbers(5, 4, 3, 3), numbers(5)], IMAGE, 20),
    "Conv grouped dilated": ("Conv", {"group": 4, "dilations": [2, 1]}, [numbers(8, 1, 3, 3)], IMAGE, 20),
    "Conv 1d": ("Conv", {"pads": [1, 1]}, [numbers(5, 4, 3)], (4, 9), 20),
    "ConvTranspose": (
        "ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        [numbers(4, 3, 3, 3), numbers(3)], IMAGE, 20,
    ),
    "Gemm transB": ("Gemm", {"transB": 1, "alpha": 0.5, "beta": 2.0}, [numbers(3, 7), numbers(3)], (7,), 20),
    "Gemm bias of one": ("Gemm", {}, [numbers(7, 3), numbers(1)], (7,), 20),
    "MatMul linear": ("MatMul", {}, [numbers(8, 3)], IMAGE, 20),
    "MatMul batched": ("MatMul", {}, [numbers(4, 8, 3)], IMAGE, 20),
    "BatchNormalization": (
        "BatchNormalization", {"epsilon": 1e-3}, [numbers(4), numbers(4), numbers(4), np.abs(numbers(4))], IMAGE, 15
    ),
    "InstanceNormalization": ("InstanceNormalization", {}, [numbers(4), numbers(4)], IMAGE, 20),
    "LayerNormalization": ("LayerNormalization", {"axis": -1, "epsilon": 1e-3}, [numbers(8), numbers(8)], IMAGE, 20),
    "LayerNormalization two axes": ("LayerNormalization", {"axis": 2}, [numbers(6, 8)], IMAGE, 20),
    **{name: (name, {}, [], IMAGE, 20) for name in ("Relu", "Sigmoid", "Tanh", "HardSwish", "Neg", "Exp", "Abs")},
    **{name: (name, {}, [], IMAGE, 20) for name in ("Erf", "Sin", "Cos", "Sign", "Floor", "Ceil", "Round", "Softplus")},
    "LeakyRelu": ("LeakyRelu", {"alpha": 0.2}, [], IMAGE, 20),
    "Elu": ("Elu", {"alpha": 0.7}, [], IMAGE, 20),
    "PRelu": ("PRelu", {}, [numbers(4, 1, 1)], IMAGE, 20),
    "PRelu one": ("PRelu", {}, [numbers(1)], IMAGE, 20),
    "Clip six": ("Clip", {}, [np.array(0, F), np.array(6, F)], IMAGE, 20),
    "Clip low": ("Clip", {}, [np.array(-0.3, F)], IMAGE, 20),
    "Clip old": ("Clip", {"min": -0.5, "max": 0.25}, [], IMAGE, 10),
    "HardSigmoid": ("HardSigmoid", {}, [], IMAGE, 20),
    "HardSigmoid sixth": ("HardSigmoid", {"alpha": 1 / 6}, [], IMAGE, 20),
    "Gelu": ("Gelu", {}, [], IMAGE, 20),
    "Gelu tanh": ("Gelu", {"approximate": "tanh"}, [], IMAGE, 20),
    "Softmax": ("Softmax", {"axis": 1}, [], IMAGE, 20),
    "Softmax old": ("Softmax", {"axis": 3}, [], IMAGE, 11),
    "LogSoftmax": ("LogSoftmax", {}, [], IMAGE, 20),
    **{name: (name, {}, [numbers(4, 1, 8)], IMAGE, 20) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min")},
    **{f"{name} number": (name, {}, [np.array(1.5, F)], IMAGE, 20) for name in ("Add", "Sub", "Mul", "Div")},
    "Pow": ("Pow", {}, [np.array(2, F)], IMAGE, 20),
    "MaxPool": ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}, [], IMAGE, 20),
    "MaxPool ceil": ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, [], (4, 7, 9), 20),
    "AveragePool": ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, [], IMAGE, 20),
    "AveragePool counted": (
        "AveragePool", {"kernel_shape": [3, 3], "pads": [1, 0, 1, 2], "count_include_pad": 1}, [], IMAGE, 20
    ),
    "GlobalAveragePool": ("GlobalAveragePool", {}, [], IMAGE, 20),
    "GlobalMaxPool": ("GlobalMaxPool", {}, [], IMAGE, 20),
    "ReduceMean": ("ReduceMean", {"keepdims": 0}, [whole(2, 3)], IMAGE, 20),
    "ReduceMean old": ("ReduceMean", {"axes": [-1]}, [], IMAGE, 13),
    "ReduceSum": ("ReduceSum", {}, [whole(1)], IMAGE, 20),
    "ReduceMax": ("ReduceMax", {"keepdims": 0}, [whole(-1)], IMAGE, 20),
    "ReduceMin": ("ReduceMin", {}, [whole(1, 2)], IMAGE, 20),
    "ReduceL2": ("ReduceL2", {}, [whole(1)], IMAGE, 20),
    "Slice": ("Slice", {}, [whole(1, -3), whole(9, -1), whole(2, 3), whole(2, 1)], IMAGE, 20),
    "Slice backwards": ("Slice", {}, [whole(-1), whole(-(2**62)), whole(3), whole(-1)], IMAGE, 20),
    "Slice old": ("Slice", {"starts": [1], "ends": [3], "axes": [1]}, [], IMAGE, 9),
    "Gather one": ("Gather", {"axis": 2}, [np.array(-1, np.int64)], IMAGE, 20),
    "Gather some": ("Gather", {"axis": 1}, [whole(3, 0, -4)], IMAGE, 20),
    "Gather table": ("Gather", {"axis": 1}, [whole(3, 0, 1, 2).reshape(2, 2)], IMAGE, 20),
    "Reshape": ("Reshape", {}, [whole(0, 2, -1, 8)], IMAGE, 20),
    "Reshape flat": ("Reshape", {}, [whole(-1, 4 * 6 * 8)], IMAGE, 20),
    "Flatten": ("Flatten", {}, [], IMAGE, 20),
    "Transpose": ("Transpose", {"perm": [0, 2, 3, 1]}, [], IMAGE, 20),
    "Squeeze": ("Squeeze", {}, [whole(2)], (4, 1, 8), 20),
    "Squeeze old": ("Squeeze", {"axes": [2, 3]}, [], (4, 1, 1), 11),
    "Unsqueeze": ("Unsqueeze", {}, [whole(1, -1)], IMAGE, 20),
    "Pad": ("Pad", {}, [whole(0, 1, 2, 0, 0, 0, 1, 3), np.array(0.5, F)], IMAGE, 20),
    "Pad reflect": ("Pad", {"mode": "reflect"}, [whole(0, 0, 2, 1, 0, 0, 1, 3)], IMAGE, 20),
    "Resize nearest": (
        "Resize", {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        [np.zeros(0, F), np.array([1, 1, 2, 2], F)], IMAGE, 20,
    ),
    "Resize linear": ("Resize", {"mode": "linear"}, [np.zeros(0, F), np.array([1, 1, 2, 1.5], F)], IMAGE, 20),
    "Resize corners": (
        "Resize", {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        [np.zeros(0, F), np.array([1, 1, 2, 2], F)], IMAGE, 20,
    ),
    "Expand": ("Expand", {}, [whole(1, 4, 5, 8)], (4, 1, 8), 20),
    "Tile": ("Tile", {}, [whole(1, 2, 1, 3)], IMAGE, 20),
    "DepthToSpace": ("DepthToSpace", {"blocksize": 2}, [], IMAGE, 20),
    "DepthToSpace CRD": ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, [], IMAGE, 20),
}  # fmt: skip


def graph_of(nodes: list[onnx.NodeProto], constants: dict[str, NDArray[np.generic]], shape: tuple[int, ...],
             opset: int = 20, out: int = TensorProto.FLOAT, batch: int | str = "N") -> onnx.ModelProto:  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("y", out, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    model = onnx.shape_inference.infer_shapes(model)
    for item in model.graph.output:
        item.type.tensor_type.shape.SetInParent()
    return model


def loaded(model: onnx.ModelProto, folder: Path) -> OnnxNet:
    onnx.save(model, folder / "net.onnx")
    return load_onnx(folder / "net.onnx")


@pytest.mark.parametrize("name", OPS)
def test_an_operator_is_what_onnx_says_it_is(name: str, tmp_path: Path) -> None:
    op, attributes, constants, shape, opset = OPS[name]
    named = {f"c{place}": value for place, value in enumerate(constants)}
    given = ["" if value.size == 0 else key for key, value in named.items()]
    node = helper.make_node(op, ["x", *given], ["y"], name="/part/one", **attributes)
    model = graph_of([node], {key: value for key, value in named.items() if value.size}, shape, opset)
    net = loaded(model, tmp_path)
    inputs = np.random.default_rng(9).standard_normal((4, *shape)).astype(np.float32)
    expected = ReferenceEvaluator(model).run(None, {"x": inputs})[0]
    with torch.no_grad():
        answer = net(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(answer, expected, rtol=2e-4, atol=2e-5)
    # What is saved holds everything but the weights.
    again = OnnxNet(type(net.program).from_json(json.loads(json.dumps(net.program.to_json()))))
    again.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert np.array_equal(again.eval()(torch.from_numpy(inputs)).numpy(), answer)


def test_several_outputs_and_inputs(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Split", ["x", "sizes"], ["a", "b"], axis=1),
        helper.make_node("Sqrt", ["one"], ["root"]),  # folded
        helper.make_node("Greater", ["a", "root"], ["mask"]),
        helper.make_node("Where", ["mask", "a", "nothing"], ["c"]),
        helper.make_node("Cast", ["mask"], ["d"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "b"], ["e"]),
        helper.make_node("Div", ["one", "three"], ["third"]),
        helper.make_node("Concat", ["c", "d", "e"], ["f"], axis=1),
        helper.make_node("Mul", ["f", "third"], ["g"]),
        helper.make_node("Einsum", ["g", "g"], ["h"], equation="nchw,nchw->nchw"),
        helper.make_node("Dropout", ["h"], ["i"]),
        helper.make_node("Identity", ["i"], ["y"]),
    ]
    constants = {
        "sizes": whole(3, 1),
        "one": np.array([0.25], F),
        "three": np.array(3, F),
        "nothing": np.array(-9, F).reshape(1, 1, 1, 1),
    }
    model = graph_of(nodes, constants, IMAGE)
    inputs = np.random.default_rng(9).standard_normal((4, *IMAGE)).astype(np.float32)
    with torch.no_grad():
        answer = loaded(model, tmp_path)(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(answer, ReferenceEvaluator(model).run(None, {"x": inputs})[0], rtol=1e-5, atol=1e-6)


def test_shape_arithmetic_is_followed_by_what_it_gives(tmp_path: Path) -> None:
    """A class token for each sample, reshapes to computed sizes, positions cut to length: all from Shape."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "zero1"], ["n1"]),
        helper.make_node("Concat", ["n1", "minus"], ["flat"], axis=0),
        helper.make_node("Reshape", ["x", "flat"], ["r"]),
        helper.make_node("Concat", ["n1", "rest"], ["full"], axis=0),
        helper.make_node("ConstantOfShape", ["full"], ["ones"], value=numpy_helper.from_array(np.ones(1, F))),
        helper.make_node("Mul", ["ones", "token"], ["tokens"]),
        helper.make_node("Concat", ["tokens", "r"], ["y"], axis=1),
    ]
    constants = {
        "zero": np.array(0, np.int64), "zero1": whole(0), "minus": whole(8, -1), "rest": whole(1, 24),
        "token": numbers(1, 1, 24),
    }  # fmt: skip
    model = graph_of(nodes, constants, IMAGE)
    net = loaded(model, tmp_path)
    assert {step.op for step in net.program.steps} <= {"reshape", "concat", "expand"}
    for count in (1, 7):
        inputs = np.random.default_rng(9).standard_normal((count, *IMAGE)).astype(np.float32)
        expected = ReferenceEvaluator(model).run(None, {"x": inputs})[0]
        assert np.array_equal(net(torch.from_numpy(inputs)).numpy(), expected)


def test_a_file_for_one_sample_takes_any_number(tmp_path: Path) -> None:
    """A channel shuffle written for one sample, where the batch ends up in the middle."""
    nodes = [
        helper.make_node("Reshape", ["x", "a"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["t", "b"], ["u"]),
        helper.make_node("Gather", ["u", "one"], ["v"], axis=0),
        helper.make_node("Reshape", ["v", "c"], ["y"]),
    ]
    constants = {"a": whole(2, 2, 48), "b": whole(2, -1, 2, 6, 8), "c": whole(1, -1), "one": np.array(1, np.int64)}
    fixed = graph_of(nodes, constants, IMAGE, batch=1)
    net = loaded(fixed, tmp_path)
    inputs = np.random.default_rng(9).standard_normal((5, *IMAGE)).astype(np.float32)
    alone = [ReferenceEvaluator(fixed).run(None, {"x": sample[None]})[0] for sample in inputs]
    assert np.array_equal(net(torch.from_numpy(inputs)).numpy(), np.concatenate(alone))


def bad(*nodes: onnx.NodeProto, **more: NDArray[np.generic]) -> onnx.ModelProto:
    return graph_of(list(nodes), more, IMAGE)


def _quantized() -> onnx.ModelProto:
    scale, zero = np.array(0.1, F), np.array(0, np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="first_q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    return bad(*nodes, s=scale, z=zero)


def _branching() -> onnx.ModelProto:
    def branch(op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["x"], ["z"])], op, [], [out])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], name="which_way", then_branch=branch("Relu"), else_branch=branch("Neg")),
    ]
    return bad(*nodes, zero=np.array(0, F))


def _two_outputs() -> onnx.ModelProto:
    model = bad(helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["other"]))
    model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))
    return model


def _whole_numbers() -> onnx.ModelProto:
    model = bad(helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    return model


def _batch_of_one() -> onnx.ModelProto:
    return graph_of([helper.make_node("Squeeze", ["x", "axis"], ["y"])], {"axis": whole(0)}, IMAGE, batch=1)


BAD: dict[str, tuple[Callable[[], onnx.ModelProto], list[str]]] = {
    "quantized": (_quantized, ["quantized already", "first_q", "next: give the float32 file"]),
    "control flow": (_branching, ["dynamic control flow", "which_way"]),
    "two outputs": (_two_outputs, ["one output", "y, other", "extract_model"]),
    "whole numbers": (_whole_numbers, ["float32 input", "int64"]),
    "for one sample only": (_batch_of_one, ["answers 1 sample at a time", "dynamic batch"]),
    "no translation": (
        lambda: bad(helper.make_node("LpPool", ["x"], ["y"], name="odd", kernel_shape=[2, 2])),
        ["LpPool node odd", "no translation", "next: rewrite this part"],
    ),
    "no such use": (
        lambda: bad(helper.make_node("Pad", ["x", "p"], ["y"], name="wide", mode="edge"), p=whole(*(0, 1, 0, 0) * 2)),
        ["Pad node wide", "replicate"],
    ),
    "other people's operator": (
        lambda: bad(helper.make_node("Magic", ["x"], ["y"], domain="com.example", name="hat")), ["com.example", "hat"]
    ),
    "a constant": (lambda: bad(helper.make_node("Neg", ["c"], ["y"]), c=numbers(1, 2)), ["hangs on no input"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_can_not_be_used_is_refused_with_its_node(name: str, tmp_path: Path) -> None:
    make, told = BAD[name]
    model = make()
    with pytest.raises(ModelError) as caught:
        loaded(model, tmp_path)
    for words in (*told, "net.onnx"):
        assert words in str(caught.value), words


@pytest.mark.parametrize("content", [b"", b"no onnx at all", b"\x08\x09" * 40])
def test_a_file_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="not a valid ONNX file"):
        load_onnx(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="no such file"):
        load_onnx(tmp_path / "none.onnx")


def test_another_task_than_the_files_is_told(exported: Exports) -> None:
    config = configs.OnnxFile(kind="onnx", path=exported("resnet", "dynamic"))
    with pytest.raises(ModelError, match=r"expected inputs \(3, 16, 16\).*takes \(3, 32, 32\)"):
        build(config, (3, 16, 16), 10)
    with pytest.raises(ModelError, match=r"expected logits \(N, 7\).*gives \(N, 10\)"):
        build(config, SHAPE, 7)


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> None:
    """A translation that is wrong, as one might be."""
    from edgewise.models.onnx import functions

    monkeypatch.setitem(functions.FUNCTIONS, "neg", torch.abs)


@pytest.mark.usefixtures("lying")
def test_a_wrong_translation_is_noticed_and_its_node_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="right"),
        helper.make_node("Neg", ["a"], ["b"], name="wrong"),
        helper.make_node("Exp", ["b"], ["y"], name="after"),
    ]
    with pytest.raises(ModelError, match="first node that differs is Neg wrong"):
        loaded(bad(*nodes), tmp_path)


def test_a_real_detector(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    import onnxruntime

    from edgewise.deploy.export import export_float

    path = real_data("fastestdet/FastestDet.onnx")
    net = load_onnx(path)
    assert (net.program.input_shape, net.program.output_shape) == ((3, 352, 352), (85, 22, 22))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = np.random.default_rng(1).random((2, 3, 352, 352), dtype=np.float32)
    alone = [session.run(None, {session.get_inputs()[0].name: sample[None]})[0] for sample in inputs]
    with torch.no_grad():
        answer = net(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(answer, np.concatenate(alone), rtol=0, atol=1e-4)
    export_float(net, (3, 352, 352), tmp_path / "float.onnx")  # compares itself with the net
