"""What TensorRT's bundle carries to the device: a build script and a page that says how to use it."""

from __future__ import annotations

from edgewise.models.inputs import Shape, is_text

IMAGES = ("images", "float32 (N, C, H, W)")
TEXTS = ("tokens", "int64 (N, L)")
BUILD_SH = r"""#!/bin/sh
# Builds one engine for each graph in this folder, on the device that will run it, and times it with trtexec.
#   ./build.sh          batch 1
#   BATCH=4 ./build.sh  another batch@USAGE@
#   TRTEXEC=/path/to/trtexec ./build.sh
set -eu
cd "$(dirname "$0")"

BATCH="${BATCH:-1}"
case "$BATCH" in
    '' | 0* | *[!0-9]*) echo "BATCH: expected a whole number from 1, got '$BATCH'" >&2; exit 2 ;;
esac

@CHECK@if [ -z "${TRTEXEC:-}" ]; then
    TRTEXEC="$(command -v trtexec || true)"
    [ -n "$TRTEXEC" ] || TRTEXEC=/usr/src/tensorrt/bin/trtexec
fi
if [ ! -x "$TRTEXEC" ]; then
    echo "trtexec not found: it comes with TensorRT (on a Jetson: JetPack, libnvinfer-bin); or set TRTEXEC" >&2
    exit 2
fi

# trtexec calls itself [TensorRT v100300] for 10.3.0 and [TensorRT v110000] for 11.0.0.
VERSION="$("$TRTEXEC" --help 2>&1 | sed -n 's/.*\[TensorRT v\([0-9][0-9]*\)\].*/\1/p' | head -n 1)"
case "$VERSION" in
    '') echo "can't tell the version of $TRTEXEC" >&2; exit 2 ;;
esac
MAJOR=$((VERSION / 10000))
# The defaults of timing changed with 11: say the same thing in both, transfers counted, no CUDA graph, no spinning.
if [ "$MAJOR" -ge 11 ]; then
    TIMING="--noCudaGraph --noSpinWait --includeDataTransfers"
elif [ "$VERSION" -ge 100300 ]; then
    TIMING=""
else
    echo "TensorRT $VERSION: expected 10.3 or later" >&2
    exit 2
fi

for NAME in @MODELS@; do
    SHAPE="input:${BATCH}x@SHAPE@" LEAST="input:${BATCH}x@LEAST@" MOST="input:${BATCH}x@MOST@"
    echo "== $NAME, TensorRT $VERSION, $SHAPE"
    "$TRTEXEC" --onnx="$NAME.onnx" --saveEngine="$NAME.engine" --stronglyTyped --noTF32 \
        --minShapes="$LEAST" --optShapes="$SHAPE" --maxShapes="$MOST" \
        --profilingVerbosity=detailed --exportLayerInfo="$NAME.layers.json" --skipInference
    # TIMING holds several words on purpose.
    # shellcheck disable=SC2086
    "$TRTEXEC" --loadEngine="$NAME.engine" --shapes="$SHAPE" $TIMING --warmUp=500 --duration=10 \
        --exportTimes="$NAME.times.json"
done
"""

README = """# TensorRT bundle

`@MAIN@.onnx` is the graph, `manifest.json` says what is known about it. The graphs are strongly typed: precisions are
written into them, and `trtexec` gets no `--fp16` or `--int8`. TensorRT 10.3 to 11.

1. Copy this folder to the device and run `./build.sh` there (`BATCH=4 ./build.sh` for another batch). An engine runs
   only on the kind of GPU, and with the TensorRT version, that built it.
2. `@MAIN@.layers.json` lists the layers with their precisions: convolutions of an INT8 graph must read Int8.
3. `@MAIN@.times.json` holds trtexec's times, transfers included. Lock the clocks first (on a Jetson: `nvpmodel`,
   `jetson_clocks`).

Run it on @SAMPLES@ of your own (`.npy`, @ARRAY@), on the device; `runner` needs Python 3.8 with numpy and
TensorRT's Python package, nothing else:

    python3 runner/run.py @MAIN@.engine @SAMPLES@.npy logits.npy

From your own code, with `runner` on Python's path (`PYTHONPATH=runner python3 ...`):

    import numpy
    from edgewise.deploy.runtimes import Options, get
    session = get("tensorrt").open("@MAIN@.engine", Options(precision="default"))
    @SAMPLES@ = numpy.load("@SAMPLES@.npy")[:1]  # @ARRAY@, N as built
    logits = session.run({"input": @SAMPLES@})["logits"]
"""

LENGTH_USAGE = """
#   LENGTH=16 ./build.sh  texts of so many tokens are what it is tuned for and timed with; it takes any up to @MOST@"""
LENGTH_CHECK = r"""LENGTH="${LENGTH:-@MOST@}"
case "$LENGTH" in
    '' | 0* | *[!0-9]*) echo "LENGTH: expected a whole number from 1, got '$LENGTH'" >&2; exit 2 ;;
esac
if [ "$LENGTH" -gt @MOST@ ]; then
    echo "LENGTH: expected at most @MOST@, got $LENGTH" >&2
    exit 2
fi

"""


def build_script(models: str, input_shape: Shape) -> str:
    """``build.sh`` for ``models``, names without suffix with spaces between."""
    text = is_text(input_shape)
    most = str(input_shape[0]) if text else "x".join(str(size) for size in input_shape)
    words = {
        "USAGE": LENGTH_USAGE if text else "",
        "CHECK": LENGTH_CHECK if text else "",
        "MODELS": models,
        "SHAPE": "${LENGTH}" if text else most,
        "LEAST": "1" if text else most,
        "MOST": most,
    }
    script = BUILD_SH
    for word, value in words.items():
        script = script.replace(f"@{word}@", value)
    return script


def page(main: str, input_shape: Shape) -> str:
    """The bundle's README."""
    words = TEXTS if is_text(input_shape) else IMAGES
    return README.replace("@SAMPLES@", words[0]).replace("@ARRAY@", words[1]).replace("@MAIN@", main)


DEVICE_INIT = '"""The part of edgewise that runs an engine; Python >= 3.8, numpy."""\n'
