"""Every form of three nets beside every other: the layers are found, and they agree as closely as their arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgewise.deploy.inspect.compare import Comparison, compare_layers
from edgewise.deploy.inspect.open import open_probe
from edgewise.deploy.parity import sqnr_db

FLOAT = ("float", "float.onnx", "ov.float32.xml", "lite.float32.tflite")
INT8 = ("quantized", "int8.onnx", "ov.int8.xml", "lite.int8.tflite")
NETS = ("resnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet", "vit")))
SAMPLES = 6
# Layers with weights: 19 convolutions and the classifier; 52 and 1; the patches, 4 in each of 2 blocks, the head.
LAYERS = {"resnet": 20, "mobilenet": 53, "vit": 10}


def compared(folder: Path, one: str, other: str) -> Comparison:
    return compare_layers(folder / one, folder / other, np.load(folder / "samples.npy")[:SAMPLES], batch=4)


def weighted(found: Comparison) -> set[str]:
    """The layers with weights that are compared, be it after their activation."""
    return {row.name for row in found.rows if row.kind in ("conv", "linear")}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("pair", list(combinations(FLOAT, 2)))
def test_float_pairs_agree_in_every_layer(nets: Callable[[str], Path], net: str, pair: tuple[str, str]) -> None:
    found = compared(nets(net), *pair)
    assert min(row.sqnr_db for row in found.rows) > 100
    assert found.output.sqnr_db > 100
    assert (found.first_bad, found.flips, found.n, found.note) == (None, 0, SAMPLES, "")
    assert len(found.rows) >= LAYERS[net]
    # Within 1e-4 of torch, of the largest answer.
    assert found.output.max_abs < 1e-4 * np.abs(open_probe(nets(net) / pair[0], ()).run(_samples(nets(net)))[0]).max()


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("pair", list(product(("float", "float.onnx"), INT8)))
def test_int8_follows_float_in_every_layer(nets: Callable[[str], Path], net: str, pair: tuple[str, str]) -> None:
    found = compared(nets(net), *pair)
    assert min(row.sqnr_db for row in found.rows) > 10
    assert found.first_bad is None
    assert len(found.rows) >= LAYERS[net]
    # Rounding to 8 bits is there to be seen, at the input and at every layer: nothing is compared with itself.
    assert max(row.sqnr_db for row in found.rows) < 70
    assert found.floor_db == 10


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("pair", list(combinations(INT8, 2)))
def test_int8_pairs_agree(nets: Callable[[str], Path], net: str, pair: tuple[str, str]) -> None:
    between = compared(nets(net), *pair)
    assert between.first_bad is None
    assert len(between.rows) >= LAYERS[net]
    if "lite.int8.tflite" not in pair:  # one graph, the same ranges: only ties may round elsewhere, and what follows
        assert min(row.sqnr_db for row in between.rows) > 20


@pytest.mark.parametrize("net", NETS)
def test_all_layers_of_torch_are_found_in_onnx(nets: Callable[[str], Path], net: str) -> None:
    found = compared(nets(net), "float", "float.onnx")
    assert len(weighted(found)) == LAYERS[net]
    assert found.unmatched == ((), ())


def test_a_fused_activation_is_compared_and_the_layer_before_it_named_as_unmatched(nets: Callable[[str], Path]) -> None:
    found = compared(nets("resnet"), "float", "lite.float32.tflite")
    assert "layer2.0.relu1" in {row.name for row in found.rows}
    assert "layer2.0.conv1" in found.unmatched[0]
    assert "layer2.0.conv1" in found.unmatched[1]
    # Two files that both fuse have no name for the activation: it is that of the layer, and of what was fused to it.
    between = compared(nets("resnet"), "lite.float32.tflite", "lite.int8.tflite")
    assert "layer2.0.conv1+relu" in {row.name for row in between.rows}


@pytest.mark.parametrize("net", NETS)
def test_what_torch_computes_is_what_its_own_hooks_see(nets: Callable[[str], Path], net: str) -> None:
    probe = open_probe(nets(net) / "float", ())
    samples = _samples(nets(net))
    wanted = {index: point.name for index, point in enumerate(probe.points) if point.kind in ("linear", "relu", "norm")}
    probe.expose(wanted)
    _, values = probe.run(samples)
    from edgewise.compress.saved import load_model

    model, _ = load_model(nets(net) / "float")
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.ReLU | nn.ReLU6 | nn.LayerNorm):
            module.register_forward_hook(lambda _m, _a, out, name=name: seen.__setitem__(name, out))
    with torch.no_grad():
        model(torch.from_numpy(samples))
    assert set(wanted.values()) == set(seen)
    for index, name in wanted.items():
        assert sqnr_db(seen[name].numpy(), values[index]) > 100, name


def test_the_comparison_is_the_one_over_all_samples_at_once(nets: Callable[[str], Path]) -> None:
    folder = nets("resnet")
    samples = _samples(folder)
    found = compare_layers(folder / "float", folder / "int8.onnx", samples, batch=4)
    probes = [open_probe(folder / form, ()) for form in ("float", "int8.onnx")]
    names = [{point.name: index for index, point in enumerate(probe.points)} for probe in probes]
    for probe, known in zip(probes, names, strict=True):
        probe.expose(known.values())
    (mine, left), (theirs, right) = (probe.run(samples) for probe in probes)
    for row in found.rows:
        if row.name in names[0] and row.name in names[1]:
            pair = left[names[0][row.name]], right[names[1][row.name]]
            assert row.sqnr_db == pytest.approx(sqnr_db(*pair), abs=1e-3), row.name
            assert row.max_abs == pytest.approx(float(np.abs(pair[0] - pair[1]).max()), rel=1e-5)
    assert found.output.sqnr_db == pytest.approx(sqnr_db(mine, theirs), abs=1e-3)
    assert found.flips == int((mine.argmax(1) != theirs.argmax(1)).sum())


def test_a_tensorrt_bundle_is_its_graph(nets: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = tmp_path / "model.trt"
    bundle.mkdir()
    (bundle / "model.int8.onnx").write_bytes((nets("resnet") / "int8.onnx").read_bytes())
    (bundle / "manifest.json").write_text('{"main": "model.int8.onnx"}')
    for source in (bundle, bundle / "manifest.json"):
        found = compare_layers(nets("resnet") / "int8.onnx", source, _samples(nets("resnet")))
        assert {row.sqnr_db for row in found.rows} == {math.inf}


def test_plain_data_holds_no_infinity(nets: Callable[[str], Path]) -> None:
    import json

    plain = compared(nets("resnet"), "float", "float").to_json()
    assert all(row["exact"] and row["sqnr_db"] is None for row in plain["rows"])
    assert json.loads(json.dumps(plain, allow_nan=False))["first_bad"] is None


def _samples(folder: Path) -> np.ndarray:
    samples: np.ndarray = np.load(folder / "samples.npy")[:SAMPLES]
    return samples
