"""INT8 files as each runtime's own tools make them, from the same float file and the same calibration samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from files import RUNTIMES, SUFFIX, Place, under_test
from numpy.typing import NDArray

from edgewise.bench.record import FileUnderTest

ROW = "own"
TRANSFORMERS = ("encoder", "tiny_vit")

Samples = NDArray[np.float32]


def make_own(place: Place, name: str) -> list[FileUnderTest]:
    """One file a runtime, with the settings its documentation recommends; what is there already stays.

    Needs the float row and the calibration samples of an INT8 row (``files.make``).
    """
    samples = np.load(place.out / name / "calibration.npy")
    folder = place.files(name, ROW)
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[Path, Path, Samples, bool], None]] = {
        "onnxruntime": _onnxruntime,
        "openvino": _openvino,
        "litert": _litert,
    }
    found = []
    for runtime in RUNTIMES:
        source = place.files(name, "float") / f"{runtime}{SUFFIX[runtime]}"
        target = folder / source.name
        if not target.exists():
            makers[runtime](source, target, samples, name in TRANSFORMERS)
        found.append(under_test(ROW, runtime, "int8", target))
    return found


def _onnxruntime(source: Path, target: Path, samples: Samples, transformer: bool) -> None:
    """``quantize_static``: Q/DQ, uint8 activations, int8 weights a channel, extremes."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        rows = iter(samples)

        def get_next(self) -> dict[str, Samples] | None:
            row = next(self.rows, None)
            return None if row is None else {"input": row[None]}

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    prepared.unlink()


def _openvino(source: Path, target: Path, samples: Samples, transformer: bool) -> None:
    """NNCF on OpenVINO's own graph."""
    import nncf
    import openvino as ov

    model = ov.Core().read_model(source)
    kind = nncf.ModelType.TRANSFORMER if transformer else None
    data = nncf.Dataset([sample[None] for sample in samples])
    ov.save_model(nncf.quantize(model, data, model_type=kind, subset_size=len(samples)), target, compress_to_fp16=False)


def _litert(source: Path, target: Path, samples: Samples, transformer: bool) -> None:
    """The quantizer's recipe of static INT8, but for inputs and outputs: they stay float32, as everywhere here."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe
    from ai_edge_quantizer.qtyping import TFLOperationName as Names

    (signature,) = Interpreter(model_path=str(source)).get_signature_list()
    worker = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
    for ends in (Names.INPUT, Names.OUTPUT):
        worker.update_quantization_recipe(".*", ends, algorithm_key="no_quantize")
    ranges = worker.calibrate({signature: [{"input": sample[None]} for sample in samples]}, num_threads=1)
    target.write_bytes(worker.quantize(ranges).quantized_model)
