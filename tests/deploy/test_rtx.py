"""What TensorRT-RTX's log says, and what becomes of a build that is refused, crashes or has no end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgewise.compress.macs import count
from edgewise.deploy.convert import rtx
from edgewise.deploy.convert.rtx import EngineLayer, conformance, parse_layers
from edgewise.errors import ContractError

SHAPE = (3, 16, 16)
LOG = (
    "Layers:\n"
    "Name: q, LayerType: kgen, Inputs: [ { Name: input, Dimensions: [1,3], Datatype: Float, Format: x }], "
    "Outputs: [ { Name: a, Datatype: Int8 }], TacticName: y, Metadata: [ONNX Layer: x.q][ONNX Layer: conv1]\n"
    "Name: conv, LayerType: correlation, Inputs: [ { Name: a, Datatype: Int8 }, { Name: b, Datatype: Half }], "
    "Constants: [ { Name: w, Datatype: Int8 }], Outputs: [ { Name: c, Datatype: Float }], "
    "Metadata: [ONNX Layer: conv1]\n"
    "something else\n"
)


@pytest.fixture
def installed() -> None:
    if rtx.module_name() is None:
        pytest.skip("TensorRT-RTX is not installed: pip install 'edgewise[rtx]'")


def test_layers_are_read_from_a_builder_log() -> None:
    assert parse_layers(LOG) == [
        EngineLayer("kgen", ("Float",), (), ("x.q", "conv1")),
        EngineLayer("correlation", ("Int8", "Half"), ("Int8",), ("conv1",)),
    ]


@pytest.mark.parametrize(
    ("inputs", "constants", "integer"),
    [
        (("Int8",), ("Int8", "Float"), True),
        (("Int8", "Int8"), ("Float",), True),  # a product of two activations, with its factors
        (("Int8",), ("Half",), False),
        (("Half", "Half"), (), False),
        (("Int8",), (), False),
    ],
)
def test_integers_are_multiplied_with_integers(
    inputs: tuple[str, ...], constants: tuple[str, ...], integer: bool
) -> None:
    assert EngineLayer("gemm", inputs, constants, ()).integer is integer


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["resnet", "mobilenet", "vit", "mixed"])
def test_macs_in_integers(exported: dict[str, Any], name: str) -> None:
    report = conformance(exported[name].signed, (1, *SHAPE))
    assert report is not None
    cost = count(exported[name].model, SHAPE)
    assert report["macs"] == cost.macs
    if name == "vit":
        # TensorRT-RTX runs an attention this small in float, or half of it.
        assert {layer.rpartition(".")[0] for layer in report["float_layers"]} == {"blocks.0.attn"}
        return
    left = sum(cost.layers[layer].macs for layer in exported[name].float_layers)
    assert set(report["float_layers"]) == set(exported[name].float_layers)
    assert report["integer_macs_share"] == pytest.approx(1 - left / cost.macs)


@pytest.mark.usefixtures("installed")
def test_float_graphs_run_in_float(exported: dict[str, Any]) -> None:
    report = conformance(exported["resnet"].float, (1, *SHAPE))
    assert report is not None
    assert report["integer_macs_share"] == 0.0


@pytest.mark.usefixtures("installed")
def test_a_graph_that_it_refuses_breaks_the_contract(exported: dict[str, Any], tmp_path: Path) -> None:
    model = onnx.load(exported["resnet"].float)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(ContractError, match="refuses"):
        conformance(tmp_path / "bad.onnx", (1, *SHAPE))
    # What runs on a CPU: uint8 with zero-points.
    with pytest.raises(ContractError, match=r"unsigned\.onnx"):
        conformance(exported["resnet"].unsigned, (1, *SHAPE))


# A crash and a hang: a stand-in for the bindings that does one or the other when the builder is made.
STAND_IN = """
__version__ = "0"
class ILogger: pass
class ComputeCapability: SM86 = 86
def Builder(logger):
    import os, signal, time
    {what}
"""


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("raise RuntimeError('no driver')", "no driver"),
        ("time.sleep(600)", "longer than 4 s"),
    ],
)
def test_a_build_that_crashes_or_hangs_is_told_and_stops_nobody(
    what: str, told: str, exported: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt_rtx_bindings.py").write_text(STAND_IN.replace("{what}", what))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    report = conformance(exported["resnet"].signed, (1, *SHAPE), timeout_s=4)
    assert report is not None
    assert told in report["error"]


def test_nothing_is_said_where_it_isnt_installed(exported: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx, "MODULES", ("no_such_bindings",))
    assert conformance(exported["resnet"].signed, (1, *SHAPE)) is None


def test_the_bundle_says_what_it_found(exported: dict[str, Any], tmp_path: Path) -> None:
    if rtx.module_name() is None:
        pytest.skip("TensorRT-RTX is not installed: pip install 'edgewise[rtx]'")
    from edgewise.deploy.convert import trt
    from edgewise.deploy.convert.base import Source

    source = Source(SHAPE, 5, signed_onnx=exported["resnet"].signed)
    manifest = json.loads(trt.convert(source, "int8", tmp_path / "bundle").read_text())
    assert manifest["conformance"]["integer_macs_share"] == 1.0
    assert manifest["conformance"]["tool"].startswith("TensorRT-RTX 1.")


def test_the_command_wants_two_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert rtx.main(["graph.onnx"]) == 2
    assert "usage" in capsys.readouterr().err
