"""Three small nets in every form: torch, fake-quantized, ONNX, OpenVINO, LiteRT; float32 and INT8."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

SCRIPT = """
import copy, sys
from pathlib import Path
import numpy as np, torch
from edgewise.compress.quantization.insert import insert_quantizers, quantizer_config
from edgewise.compress.saved import Description, FakeQuantized, load_model, save_model
from edgewise.deploy.convert import litert, ov
from edgewise.deploy.convert.base import Source
from edgewise.deploy.export import export_float, export_qdq
from edgewise.models.build import build
from edgewise.models.cifar_resnet import BasicBlock
from edgewise.models.config import CifarResNet, MobileNetV2, ViT

torch.set_num_threads(1)
NETS = {
    "resnet": (CifarResNet(depth=20, width=8), (3, 16, 16)),
    "mobilenet": (MobileNetV2(width_multiplier=0.1, stem="cifar"), (3, 16, 16)),
    "vit": (ViT(patch=4, dim=32, depth=2, heads=2), (3, 16, 16)),
}
for name in sys.argv[2:]:
    config, shape = NETS[name]
    root = Path(sys.argv[1]) / name
    torch.manual_seed(3)
    model = build(config, shape, 10)
    samples = np.random.default_rng(0).standard_normal((24, *shape), dtype=np.float32)
    # Trained nets have statistics, gains and offsets that do something, and weights that are not tiny.
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.LayerNorm)):
                module.weight.uniform_(0.6, 1.4)
                module.bias.normal_(0, 0.2)
            if isinstance(module, BasicBlock):
                module.bn2.weight.mul_(0.4)
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, 2 / module.in_features**0.5)
                module.bias.normal_(0, 0.1)
        for _ in range(20):
            model.train()(torch.from_numpy(samples))
    model.eval()
    description = Description(model=config, input_shape=shape, classes=10)
    save_model(model, description, root / "float")
    np.save(root / "samples.npy", samples)
    export_float(model, shape, root / "float.onnx")
    quantized = insert_quantizers(copy.deepcopy(model), samples)
    edits = (FakeQuantized(nncf=quantizer_config(quantized)),)
    save_model(quantized, Description(**{**dict(description), "edits": edits}), root / "quantized")
    export_qdq(quantized, shape, root / "int8.onnx", signed=False)
    source = Source(shape, 10, float_onnx=root / "float.onnx", unsigned_onnx=root / "int8.onnx")
    for precision, folder in (("float32", "float"), ("int8", "quantized")):
        ov.convert(source, precision, root / f"ov.{precision}")
        form, _ = load_model(root / folder)
        litert.convert_module(form, precision, root / f"lite.{precision}", input_shape=shape,
                              calibration=samples if precision == "int8" else None)
"""


GROUPS = (("resnet",), ("mobilenet", "vit"))


@pytest.fixture(scope="session")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``nets("resnet") -> Path``: the folder with ``float``, ``float.onnx``, ``ov.int8.xml`` … and ``samples.npy``."""
    pytest.importorskip("litert_torch", reason="litert_torch is not installed")
    pytest.importorskip("openvino", reason="openvino is not installed")
    root = tmp_path_factory.mktemp("inspected")

    @cache
    def make(*names: str) -> None:
        command = [sys.executable, "-c", SCRIPT, str(root), *names]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ.copy(), timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]

    def find(name: str) -> Path:
        # One process for each group: imports cost more than the nets, and quick tests need the first net alone.
        make(*next(group for group in GROUPS if name in group))
        return root / name

    return find
