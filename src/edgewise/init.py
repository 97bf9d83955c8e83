"""``edgewise init``: a commented recipe to start from, one for each model family."""

from __future__ import annotations

from pathlib import Path

from edgewise.errors import RecipeError
from edgewise.recipe_words import did_you_mean

_PRUNE = """\
  - kind: prune                # takes whole channels out
    macs_ratio: 0.5            # multiply-accumulates after / before
"""
# family: (teacher, a smaller student instead of pruning, stages before distill)
_FAMILIES = {
    "cifar_resnet": (
        """\
    kind: cifar_resnet
    depth: 20                  # 8, 14, 20, 32, 44, 56 or 110
    width: 16                  # channels of the first stage
""",
        "",
        _PRUNE,
    ),
    "mobilenet_v2": (
        """\
    kind: mobilenet_v2
    width_multiplier: 1.0
    stem: cifar                # cifar for small images, imagenet for 224 x 224
""",
        "",
        _PRUNE,
    ),
    "vit": (
        """\
    kind: vit
    patch: 2                   # pixels a side of one patch; it must divide the image
    dim: 64
    depth: 4
    heads: 4
""",
        """\
    kind: vit
    patch: 2
    dim: 32
    depth: 2
    heads: 4
""",
        "",
    ),
    "factory": (
        """\
    kind: factory
    factory: my_package.my_module:build   # build(input_shape, classes, **arguments) -> torch.nn.Module
    arguments: {}
""",
        "",
        _PRUNE,
    ),
}

FAMILIES = tuple(_FAMILIES)

_RECIPE = """\
# edgewise run {name}.yaml               makes, measures and judges the files
# edgewise run {name}.yaml --for phone   lets a target profile choose what is left open here
name: {name}
seed: 0

task:
  kind: digits                 # 8 x 8 handwritten digits, shipped with scikit-learn
  # Your own images in one file (x_train y_train x_test y_test), or in folders train/<class>/, test/<class>/:
  # kind: npz
  # path: images.npz           # looked up beside this file, or in --data DIR
  # mean: [0.5]                # per channel, of pixels scaled to 0..1
  # std: [0.5]

teacher:
  model:
{teacher}  # weights: trained.pth       # start from trained weights (.pth, .pt or .safetensors) …
  train:                       # … or train here; with both, the weights are fine-tuned
    epochs: 8
    batch_size: 128
    optimizer: {{kind: adamw, lr: 0.002}}
{student}
stages:                        # in this order; leave out what you don't want
{prune}  - kind: distill              # learn from the labels and from the teacher's answers
    fit: {{epochs: 6, batch_size: 128, optimizer: {{kind: adamw, lr: 0.002}}}}
    cross_entropy: 0.1         # weight of the labels
    losses:
      - {{kind: kd, weight: 0.9, temperature: 4.0}}
  - kind: quantize             # INT8; without fit it only calibrates, with fit it trains on
    fit: {{epochs: 2, batch_size: 128, optimizer: {{kind: adamw, lr: 0.0002}}}}

deploy:
  # Without targets: INT8 for onnxruntime, openvino and litert, or what --for chooses.
  # targets:
  #   - {{runtime: onnxruntime, precisions: [int8]}}
  #   - {{runtime: tensorrt, precisions: [float16, int8]}}
  min_sqnr_db: 40.0            # float32 files must follow torch this closely

bench:
  threads: 1
  batch: 1

budget:                        # what 'edgewise gate' holds the INT8 files to; leave a line out to not check it
  max_accuracy_drop_pp: 3.0    # percentage points under the float teacher in the same runtime
  min_speedup: 1.0             # p50 latency of the float teacher / p50 of the file
  min_size_ratio: 1.5          # bytes of the float teacher / bytes of the file
"""


def starter(family: str, name: str | None = None) -> str:
    """The text of a recipe for a model family.

    Raises:
        RecipeError: no such family.
    """
    if family not in _FAMILIES:
        raise RecipeError(
            f"no model family {family!r}; there are {', '.join(FAMILIES)}{did_you_mean(family, FAMILIES)}",
            where="MODEL",
        )
    teacher, student, prune = _FAMILIES[family]
    if student:
        student = (
            f"\nstudent:                       # leave it out to make the teacher itself smaller\n  model:\n{student}"
        )
    else:
        student = (
            "\n# student:                     # a smaller model to teach, instead of the pruned teacher\n#   model: …\n"
        )
    return _RECIPE.format(name=name or family, teacher=teacher, student=student, prune=prune)


def write_starter(family: str, out: Path) -> Path:
    """Write a recipe; a file that is there already is never touched.

    Raises:
        RecipeError: no such family, or ``out`` exists.
    """
    text = starter(family)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(
            "it exists already, and is left as it is", where=str(out), hint="choose another --out"
        ) from None
    except FileNotFoundError:
        raise RecipeError("its folder does not exist", where=str(out)) from None
    return out
