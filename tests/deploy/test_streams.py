"""More than one inference of one open file at a time: the same answers, and settings that say how."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.deploy import runtimes
from edgewise.deploy.runtimes import Options
from edgewise.deploy.runtimes.base import Streams
from edgewise.errors import MeasureError

NAMES = ("onnxruntime", "openvino", "litert")


@pytest.mark.parametrize(
    ("name", "threads"), [("onnxruntime", 1), ("onnxruntime", 2), ("openvino", 1), ("litert", 1), ("litert", 2)]
)
def test_streams_answer_at_once_and_alike(
    name: str, threads: int, converted: Mapping[str, Path], small_net: Any
) -> None:
    path = str(converted[f"{name}.float32"])
    with closing(runtimes.get(name).open(path, Options())) as alone:
        feeds = [{alone.inputs[0].name: small_net.images[i : i + 1]} for i in range(8)]
        expected = [alone.run(feed)["logits"] for feed in feeds]
    first = runtimes.get(name).open(path, Options(threads=threads, streams=2))
    second = first.stream()
    found: dict[int, list[np.ndarray]] = {}

    def answer(number: int, session: runtimes.Session) -> None:
        order = feeds if number == 0 else feeds[::-1]
        for _ in range(20):
            found[number] = [session.run(feed)["logits"] for feed in order]

    both = [threading.Thread(target=answer, args=pair) for pair in enumerate((first, second))]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    # One stream of a different number of threads may add up in another order.
    np.testing.assert_allclose(np.concatenate(found[0]), np.concatenate(expected), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.concatenate(found[0]), np.concatenate(found[1][::-1]))
    second.close()
    np.testing.assert_array_equal(first.run(feeds[0])["logits"], found[0][0])
    first.close()


@pytest.mark.parametrize("name", NAMES)
def test_settings_say_how_many_and_how(name: str, converted: Mapping[str, Path]) -> None:
    with closing(runtimes.get(name).open(str(converted[f"{name}.float32"]), Options(streams=2))) as session:
        assert (session.settings["threads"], session.settings["streams"]) == (1, 2)
        with closing(session.stream()) as other:
            assert other.settings == session.settings
    ways = {
        "onnxruntime": "calls into one session",
        "openvino": "an infer request each",
        "litert": "an interpreter each",
    }
    assert session.settings["streams_by"] == ways[name]


def test_openvino_has_no_more_threads_than_the_machine_and_says_so(converted: Mapping[str, Path]) -> None:
    path = str(converted["openvino.float32"])
    streams = (os.cpu_count() or 1) + 1
    with pytest.raises(MeasureError, match=f"asked for INFERENCE_NUM_THREADS {2 * streams}, it runs with"):
        runtimes.get("openvino").open(path, Options(threads=2, streams=streams))


def test_openvino_says_all_its_threads(converted: Mapping[str, Path]) -> None:
    path = str(converted["openvino.float32"])
    with closing(runtimes.get("openvino").open(path, Options(streams=2))) as session:
        assert session.settings["threads_in_all"] == 2


def test_onnxruntime_gives_streams_of_many_threads_a_session_each(converted: Mapping[str, Path]) -> None:
    path = str(converted["onnxruntime.float32"])
    with closing(runtimes.get("onnxruntime").open(path, Options(threads=2, streams=2))) as session:
        assert session.settings["streams_by"] == "a session each"
        with closing(session.stream()) as other:
            assert other.settings["threads"] == 2


@pytest.mark.parametrize("name", NAMES)
def test_more_streams_than_it_was_opened_for_are_refused(name: str, converted: Mapping[str, Path]) -> None:
    with closing(runtimes.get(name).open(str(converted[f"{name}.float32"]), Options(streams=2))) as session:
        with closing(session.stream()) as other, pytest.raises(MeasureError, match="opened for 2 streams"):
            other.stream()
        with pytest.raises(MeasureError, match=r"Options\(streams=3\)"):
            session.stream()


@pytest.mark.parametrize("name", NAMES)
def test_no_stream_at_all_is_refused(name: str, converted: Mapping[str, Path]) -> None:
    with pytest.raises(MeasureError, match="streams: expected a whole number from 1, got 0"):
        runtimes.get(name).open(str(converted[f"{name}.float32"]), Options(streams=0))


def test_streams_are_counted_together() -> None:
    streams = Streams(3)
    streams.take()
    streams.take()
    with pytest.raises(MeasureError, match="opened for 3 streams"):
        streams.take()
