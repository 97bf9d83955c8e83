"""Texts in the bench: run at their own lengths, timed as the data's lengths are spread, answered for each token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewise.bench.agent import texts, worker
from edgewise.bench.config import Bench
from edgewise.bench.gate import accuracy
from edgewise.bench.gate.found import Unusable
from edgewise.bench.measure import measure
from edgewise.bench.numbers import flippable
from edgewise.bench.record import FileUnderTest
from edgewise.deploy.runtimes import TensorSpec
from edgewise.errors import MeasureError

WORDS, LONGEST, PADDING = 20, 32, 7
OPEN, FIXED = (TensorSpec("input", (1, length), "int64") for length in (None, LONGEST))


def samples(seed: int, count: int) -> Any:
    """The padding's id stands inside of texts, too."""
    random = np.random.default_rng(seed)
    ids = random.integers(WORDS, size=(count, LONGEST))
    for row, length in zip(ids, random.integers(1, LONGEST + 1, count), strict=True):
        row[length - 1] = 1
        row[length:] = PADDING
    return ids


def real_length(row: Any) -> int:
    kept = list(row)
    while len(kept) > 1 and kept[-1] == PADDING:
        kept.pop()
    return len(kept)


def tagger(path: Path, length: int | str) -> Any:
    """(N, L) ids -> (N, L, 3), the rows of a table; the table."""
    table = np.random.default_rng(0).standard_normal((WORDS, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input"], ["logits"], name="words")],
        "tags",
        [helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", length])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", length, 3])],
        [numpy_helper.from_array(table, "table")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return table


def opened(path: Path, batch: int = 1) -> tuple[worker.State, dict[str, Any]]:
    state, asked = worker.State(), {"path": str(path), "threads": 1, "batch": batch, "precision": "float32"}
    worker.do_import(state, {"runtime": "onnxruntime"})
    worker.do_load(state, asked)
    return state, asked


def test_lengths_are_those_of_a_slow_count() -> None:
    ids = samples(0, 50)
    ids[3] = PADDING
    assert texts.lengths(ids, PADDING).tolist() == [real_length(row) for row in ids]


def test_what_is_cut_is_padding_of_all_and_no_more_than_a_multiple() -> None:
    for seed in range(20):
        ids = samples(seed, 3)
        got = texts.cut(ids, PADDING, OPEN)
        longest = max(real_length(row) for row in ids)
        assert got.shape == (3, min(LONGEST, 8 * -(-longest // 8)))
        np.testing.assert_array_equal(got, ids[:, : got.shape[1]])
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(texts.cut(ids, PADDING, FIXED), ids)


def test_timed_texts_have_the_datas_lengths_and_so_has_every_part_of_them() -> None:
    ids = samples(1, 2000)
    every = np.sort(texts.lengths(ids, PADDING))
    chosen = texts.spread(ids, PADDING, 64)
    assert len(set(chosen)) == 64
    picked = texts.lengths(ids[chosen], PADDING)
    for q in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1):
        assert abs(np.quantile(picked, q) - np.quantile(every, q)) <= 1
    for start in range(0, 64, 16):
        assert abs(picked[start : start + 16].mean() - every.mean()) < 0.1 * every.mean()
    np.testing.assert_array_equal(texts.spread(ids, PADDING, 64), chosen)


def test_a_length_is_brought_about_with_the_texts_own_tokens() -> None:
    ids = samples(2, 5)
    for length in (1, 16, 90):
        for row, made in zip(ids, texts.of_length(ids, PADDING, length, OPEN), strict=True):
            own = row[: real_length(row)].tolist()
            assert made.tolist() == [(own * 90)[:length]]
    with pytest.raises(MeasureError, match="any length"):
        texts.of_length(ids, PADDING, 16, FIXED)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_worker_times_texts_at_their_own_lengths(batch: int, tmp_path: Path) -> None:
    tagger(tmp_path / "net.onnx", "length")
    ids = samples(3, 200)
    np.save(tmp_path / "inputs.npy", ids)
    state, asked = opened(tmp_path / "net.onnx", batch)
    worker.do_first(state, {**asked, "inputs": str(tmp_path / "inputs.npy"), "padding": PADDING})
    fed = [feed["input"] for feed in state.feeds]
    assert len(fed) == worker.FEEDS // batch
    for array in fed:
        longest = max(real_length(row) for row in array)
        assert array.shape == (batch, min(LONGEST, 8 * -(-longest // 8)))
    if batch == 1:
        assert {array.shape[1] for array in fed} == {8, 16, 24, 32}
    state.feeds.clear()
    worker.do_first(state, {**asked, "inputs": str(tmp_path / "inputs.npy"), "padding": PADDING, "length": 13})
    assert {feed["input"].shape for feed in state.feeds} == {(batch, 13)}


def test_images_have_no_length(tmp_path: Path) -> None:
    tagger(tmp_path / "net.onnx", "length")
    np.save(tmp_path / "inputs.npy", samples(0, 4))
    state, asked = opened(tmp_path / "net.onnx")
    with pytest.raises(MeasureError, match="only texts"):
        worker.do_first(state, {**asked, "inputs": str(tmp_path / "inputs.npy"), "length": 8})


@pytest.mark.parametrize("length", ["length", LONGEST])
def test_answers_for_tokens_come_back_at_full_length(length: int | str, tmp_path: Path) -> None:
    table = tagger(tmp_path / "net.onnx", length)
    ids = samples(4, 23)
    np.save(tmp_path / "inputs.npy", ids)
    targets = np.where(ids == PADDING, -100, 0)

    def score(outputs: Any, truth: Any) -> Any:
        real = truth != -100
        return ((outputs.argmax(2) == truth) & real).sum(1) / np.maximum(1, real.sum(1))

    file = FileUnderTest("net", "onnxruntime", "float32", "candidate", str(tmp_path / "net.onnx"), 1, "0" * 64)
    config = Bench(launches=1, max_launches=1, blocks=2, block_ms=1, warmup_s=0, sample_hz=0)
    named = [str(place) for place in range(23)]
    results = measure(
        [file], tmp_path / "inputs.npy", targets, named, config, tmp_path / "out", score=score, padding=PADDING
    )
    answered = results.outputs("net")
    assert answered is not None
    assert answered.shape == (23, LONGEST, 3)
    assert results.answers["net"].error is None
    for row, got in zip(ids, answered, strict=True):
        real = real_length(row)
        np.testing.assert_array_equal(got[:real], table[row[:real]])
    expected = score(table[ids], targets)
    found = results.scores("net")
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_scenario_may_ask_for_one_length(tmp_path: Path) -> None:
    tagger(tmp_path / "net.onnx", "length")
    np.save(tmp_path / "inputs.npy", samples(4, 8))
    file = FileUnderTest("net", "onnxruntime", "float32", "candidate", str(tmp_path / "net.onnx"), 1, "0" * 64)
    scenario = {"kind": "single_stream", "name": "16 tokens", "length": 16, "repeats": 1, "seconds": 0.05}
    raw = {"launches": 1, "max_launches": 1, "blocks": 2, "block_ms": 1, "warmup_s": 0, "sample_hz": 0}
    config = Bench.model_validate({**raw, "scenarios": [scenario]})
    zeros, ids = np.zeros(8, np.int64), list("abcdefgh")
    results = measure(
        [file],
        tmp_path / "inputs.npy",
        zeros,
        ids,
        config,
        tmp_path / "out",
        score=lambda outputs, truth: np.zeros(len(truth), np.float32),
        padding=PADDING,
    )
    (found,) = results.measurements["net"].scenarios
    assert found.name == "16 tokens"
    assert found.points
    assert all(point.valid for point in found.points)


def test_numbers_have_no_flips_and_the_gate_says_so(tmp_path: Path) -> None:
    for name, size in (("one", 1), ("two", 2)):
        array = np.ones((1, size), np.float32)
        graph = helper.make_graph(
            [
                helper.make_node("Cast", ["input"], ["float"], to=TensorProto.FLOAT),
                helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=1),
                helper.make_node("MatMul", ["mean", "weight"], ["logits"]),
            ],
            name,
            [helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", "length"])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", size])],
            [numpy_helper.from_array(array, "weight"), numpy_helper.from_array(np.array([1]), "axes")],
        )
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "net.onnx"
        )
        np.save(tmp_path / "inputs.npy", samples(5, 6))
        plain = FileUnderTest(name, "onnxruntime", "float32", "reference", str(tmp_path / "net.onnx"), 1, "0" * 64)
        again = FileUnderTest("again", "onnxruntime", "int8", "candidate", plain.path, 1, "0" * 64, reference=name)
        results = measure(
            [plain, again],
            tmp_path / "inputs.npy",
            np.zeros(6, np.float32),
            list("abcdef"),
            Bench(launches=1, max_launches=1, blocks=2, block_ms=1, warmup_s=0, sample_hz=0),
            tmp_path / name,
            score=lambda outputs, truth: np.full(len(truth), 0.5, np.float32),
            padding=PADDING,
        )
        assert flippable(results, "again") is (size > 1)
        if size > 1:
            assert accuracy.flips(results, again).interval.value == 0
        else:
            with pytest.raises(Unusable, match="nothing to flip"):
                accuracy.flips(results, again)
            assert accuracy.drop(results, again).interval.value == 0
