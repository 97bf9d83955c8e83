"""What all tests share: one thread, no accelerator, fixed seeds, real data by name, and no quiet skips where CI forbids
them. Nothing heavy is imported here."""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import Callable, Generator
from pathlib import Path

# Before numpy, torch or a runtime is imported, here or in a subprocess.
os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", MPLBACKEND="Agg", NO_COLOR="1", COLUMNS="120")

import numpy as np
import pytest

REPO = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("EDGEWISE_DATA") or REPO.parent / "shared" / "data")

# A skip whose reason says that one of these is not installed is a failure when its variable is set, as CI does.
REQUIRED = {
    "EDGEWISE_REQUIRE_RUNTIMES": re.compile(
        r"(?=.*(onnxruntime|openvino|litert|quantizer|tensorrt-rtx|loadgen|tokenizers|transformers|seqeval))"
        r"(?=.*(install|import|missing|no module))",
        re.IGNORECASE | re.DOTALL,
    ),
    "EDGEWISE_REQUIRE_DATA": re.compile(r"real data"),
    "EDGEWISE_REQUIRE_SSH": re.compile(r"OpenSSH"),
    "EDGEWISE_REQUIRE_CHROMIUM": re.compile(r"chromium"),
}


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """``real_data("cifar10_jpeg.npz") -> Path``; skips where the folder named by ``EDGEWISE_DATA`` has no such file."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"real data: no {name} in {DATA}; set EDGEWISE_DATA to the folder that has it")
        return path

    return find


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``run_folder("digits") -> Path``: a folder that lives as long as the session; one name, one folder."""
    root = tmp_path_factory.mktemp("runs")

    def make(name: str) -> Path:
        (root / name).mkdir(exist_ok=True)
        return root / name

    return make


@pytest.fixture(scope="session")
def word_pieces(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``word_pieces("a b", special=…) -> Path``: a folder with a BERT tokenizer that knows these pieces, after [PAD],
    [UNK], [CLS], [SEP] and [MASK], whose ids are 0 to 4."""

    def make(pieces: str, special: str = "[PAD] [UNK] [CLS] [SEP] [MASK]") -> Path:
        pytest.importorskip("tokenizers")
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

        vocabulary = {piece: number for number, piece in enumerate([*special.split(), *pieces.split()])}
        made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
        made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
        made.add_special_tokens(special.split())
        folder = tmp_path_factory.mktemp("tokenizer")
        made.save(str(folder / "tokenizer.json"))
        return folder

    return make


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries still draw from the global generator
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)


def _refused(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip that CI does not accept into a failure that keeps the reason."""
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    for variable, pattern in REQUIRED.items():
        if report.skipped and os.environ.get(variable) and pattern.search(reason):
            report.outcome = "failed"
            report.longrepr = f"{variable} is set, so this must not skip. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refused(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refused(report)
    return report
