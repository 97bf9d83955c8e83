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

_TEXT = "huggingface"
FAMILIES = (*_FAMILIES, _TEXT)

_END = """
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
"""

_TEXT_RECIPE = """\
# edgewise run {name}.yaml               makes, measures and judges the files
# edgewise run {name}.yaml --for phone   lets a target profile choose what is left open here
# Texts need the extra: pip install 'edgewise[text]'
name: {name}
seed: 0

task:
  kind: text                   # sentences or pairs; kind: tags is for words, as in named entities
  train: train.tsv             # files are looked up beside this one, or in --data DIR
  test: test.tsv
  # val: val.tsv               # or val_size: 500, held out of the training file
  # transfer: more.txt         # texts without labels, one a line, for a distill stage with 'split: transfer'
  text: sentence               # the column of the text, or [first, second] of a pair
  label: label
  tokenizer: encoder           # a folder with tokenizer.json
  max_length: 64               # tokens; longer texts are cut

teacher:
  model: {{kind: huggingface, path: encoder}}   # a folder with config.json and model.safetensors
  train:                       # fine-tunes it on the labels
    epochs: 3
    batch_size: 32
    optimizer: {{kind: adamw, lr: 5.0e-5, decay: matrices}}
    schedule: linear
    warmup_epochs: 0.3
    clip_norm: 1.0

student:
  model:
    kind: bert
    layers: 3                  # half of the teacher's
    width: 384                 # as the teacher's, so that its layers can be copied
    heads: 12

stages:                        # in this order; leave out what you don't want
  - kind: inherit              # starts from every other layer of the teacher
  - kind: distill              # learn from the labels and from the teacher's answers
    fit:
      epochs: 3
      batch_size: 32
      optimizer: {{kind: adamw, lr: 5.0e-5, decay: matrices}}
      schedule: linear
      warmup_epochs: 0.3
      clip_norm: 1.0
    cross_entropy: 0.3         # weight of the labels
    losses:
      - {{kind: kd, weight: 0.7, temperature: 2.0}}
  - kind: quantize             # INT8; without fit it only calibrates
"""


def starter(family: str, name: str | None = None) -> str:
    """The text of a recipe for a model family.

    Raises:
        RecipeError: no such family.
    """
    if family not in FAMILIES:
        raise RecipeError(
            f"no model family {family!r}; there are {', '.join(FAMILIES)}{did_you_mean(family, FAMILIES)}",
            where="MODEL",
        )
    if family == _TEXT:
        return (_TEXT_RECIPE + _END).format(name=name or family)
    teacher, student, prune = _FAMILIES[family]
    if student:
        student = (
            f"\nstudent:                       # leave it out to make the teacher itself smaller\n  model:\n{student}"
        )
    else:
        student = (
            "\n# student:                     # a smaller model to teach, instead of the pruned teacher\n#   model: …\n"
        )
    return (_RECIPE + _END).format(name=name or family, teacher=teacher, student=student, prune=prune)


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
