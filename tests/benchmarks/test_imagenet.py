"""The ImageNet benchmark: its nets are the published ones, its task is right, and its tables say what was answered."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgewise.deploy.runtimes import Options, get

REPO = Path(__file__).resolve().parents[2]
MODULES = ("options", "samples", "files", "own", "tables", "run")
SAMPLES = 200


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripts as modules, gone after the test."""
    monkeypatch.syspath_prepend(str(REPO))
    monkeypatch.syspath_prepend(str(REPO / "benchmarks" / "imagenet"))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = SimpleNamespace(**{name: import_module(name) for name in MODULES})
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name)
    return found


def answers(model: nn.Module, split: Any, index: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        parts = [model(torch.from_numpy(split.read(part))).numpy() for part in np.array_split(index, 8)]
    return np.concatenate(parts)


@pytest.mark.parametrize(("name", "right", "published"), [("mobilenet_v1", 112, 0.521), ("squeezenet", 111, 0.599)])
def test_published_weights_fit_strictly_and_answer_as_published(
    bench: Any, real_data: Callable[[str], Path], name: str, right: int, published: float
) -> None:
    """``published`` comes with the weights, for all 1000 images: other padding, pools, channel order or normalisation
    would miss it. ``right`` of these 200 was counted once."""
    data = real_data(bench.options.FILE).parent
    model, _ = bench.files.float_model(bench.files.Place(data, data), name)
    net = bench.options.NETS[name]
    split = bench.samples.imagenet(str(data / bench.options.FILE), net.normalisation, limit=SAMPLES).splits["test"]

    hits = (answers(model, split, np.arange(SAMPLES)).argmax(1) == split.targets).sum()

    assert abs(hits - right) <= 1
    assert abs(hits / SAMPLES - published) < 0.07


def test_mobilenet_v2_weights_fit_strictly(bench: Any, real_data: Callable[[str], Path]) -> None:
    path = real_data(bench.options.NETS["mobilenet_v2"].weights)
    model = bench.files.float_model(bench.files.Place(path.parent, path.parent), "mobilenet_v2")[0]

    assert sum(p.numel() for p in model.parameters()) == 3_487_816  # the paper's 3.4 M, BatchNorm folded into biases


@pytest.mark.parametrize(("name", "millions"), [("resnet18", 11.69), ("encoder", 10.65)])
def test_nets_without_weights_have_their_published_size(bench: Any, name: str, millions: float) -> None:
    """ResNet-18: torchvision's table. The encoder: 6 layers of 12 D^2 + 13 D weights, D = 384, and a classifier."""
    place = bench.files.Place(Path(), Path())
    model, description = bench.files.float_model(place, name)

    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    with torch.no_grad():
        assert model(torch.zeros(2, *description.input_shape)).shape == (2, description.classes)


def test_calibration_images_are_among_the_test_images(bench: Any, real_data: Callable[[str], Path]) -> None:
    task = bench.samples.imagenet(str(real_data(bench.options.FILE)), calibration=16)
    train, test = task.splits["train"], task.splits["test"]

    assert len(train.ids) == 16
    assert [test.ids.index(sample) for sample in train.ids] == bench.samples.spread(1000, 16).tolist()
    np.testing.assert_array_equal(train.read(np.arange(2)), test.read(bench.samples.spread(1000, 16)[:2]))


def test_quantized_mobilenet_runs_whole_in_integers_and_keeps_its_answers(
    bench: Any, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    """Defaults lose some 8 points in ONNX Runtime; what is broken (a lost quantizer, a wrong scale) guesses."""
    from edgewise.compress.quantization.insert import insert_quantizers
    from edgewise.deploy.convert import ort
    from edgewise.deploy.convert.base import Source
    from edgewise.deploy.export import export_qdq

    data = real_data(bench.options.FILE).parent
    model, description = bench.files.float_model(bench.files.Place(data, data), "mobilenet_v1")
    task = bench.samples.imagenet(str(data / bench.options.FILE), calibration=8, limit=SAMPLES)
    quantized = insert_quantizers(model, task.splits["train"].read(np.arange(8)))
    export_qdq(quantized, description.input_shape, tmp_path / "qdq.onnx", signed=False)
    source = Source(description.input_shape, description.classes, unsigned_onnx=tmp_path / "qdq.onnx")
    path = ort.convert(source, "int8", tmp_path / "model")

    kinds = [kind for kind, _ in ort.optimized_ops(path)]
    assert kinds.count("QLinearConv") == 27
    assert kinds.count("QLinearLeakyRelu") == 27
    assert not {"Conv", "FusedConv", "LeakyRelu", "DequantizeLinear"} & set(kinds)
    split, index = task.splits["test"], np.arange(0, SAMPLES, 2)
    inputs = split.read(index)
    session = get("onnxruntime").open(str(path), Options(batch=len(index)))
    given = session.run({"input": inputs})["logits"].argmax(1)
    session.close()
    before = answers(model, split, index).argmax(1)
    assert (given == before).mean() > 0.5
    assert (given == split.targets[index]).mean() > (before == split.targets[index]).mean() - 0.2


@pytest.mark.filterwarnings("ignore:.*preserve_all_tensors:UserWarning")  # the tool's own way to calibrate
def test_files_of_the_runtimes_own_tools_are_int8_and_answer_like_the_float_ones(bench: Any, tmp_path: Path) -> None:
    place, name = bench.files.Place(tmp_path, tmp_path), "tiny_vit"
    floats = bench.files.make(place, name, "float", None)
    samples = np.random.default_rng(0).standard_normal((16, 1, 8, 8), dtype=np.float32)
    np.save(tmp_path / name / "calibration.npy", samples)

    for before, after in zip(floats, bench.own.make_own(place, name), strict=True):
        given = []
        for file in (before, after):
            session = get(file.runtime).open(file.path, Options())
            given.append(np.concatenate([session.run({"input": sample[None]})["logits"].copy() for sample in samples]))
            session.close()
        noise = given[1] - given[0]
        assert after.runtime == before.runtime
        assert after.reference == before.name
        # 6 dB is what ONNX Runtime keeps of a transformer whose every op it quantizes; chance keeps none.
        assert 0 < np.square(noise).sum() < 0.5 * np.square(given[0]).sum()
        assert after.size_bytes < 0.6 * before.size_bytes


def test_drop_is_paired(bench: Any) -> None:
    before = np.array([1, 1, 1, 0, 0, 1, 1, 1, 1, 1], np.float32)
    after = np.array([1, 0, 0, 1, 0, 1, 1, 1, 1, 1], np.float32)

    drop = bench.tables.drop_of(before, after)

    assert drop.value == pytest.approx(before.mean() - after.mean())
    assert drop.low < drop.value < drop.high
