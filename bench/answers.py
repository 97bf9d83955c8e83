"""Let every file answer the samples in its own runtime, as many at once as there are CPUs: no time is taken here."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgewise.bench.ask import There, import_runtime
from edgewise.bench.config import Bench
from edgewise.bench.devices.base import Device, Worker
from edgewise.bench.launches import Progress
from edgewise.bench.record import Answers, FileUnderTest, file_stem
from edgewise.errors import DataError, MeasureError

ANSWER_BATCH = 100
LIMIT_S = 3600.0

Score = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]


def answer_all(
    files: Sequence[FileUnderTest],
    there: There,
    targets: NDArray[np.int64],
    config: Bench,
    out: Path,
    device: Device,
    *,
    score: Score,
    unable: Mapping[str, str],
    progress: Progress,
) -> dict[str, Answers]:
    """Each file's answers to the samples, written below ``out``; a file that can't says why.

    Args:
        files: who answers; ``unable`` are those that need no trying, and why.
        there: where files, inputs and the index of the samples are on the device.
        targets: (n,), of the samples to answer; (n, L) where each token is answered.
        config: threads of a file.
        out: the results' folder.
        device: where; open.
        score: ``(outputs (n, K), targets (n,)) -> (n,)``; or of each token, ``(n, L, K), (n, L) -> (n,)``.
        unable: files that could not be run, and why.
        progress: told of each file.

    Raises:
        DataError: ``score`` doesn't give one value a sample.
        DeviceError: the device doesn't answer any more.
    """
    (out / "answers").mkdir(parents=True, exist_ok=True)
    answers = {name: _unanswered(name, f"it could not be run: {why}") for name, why in unable.items()}
    progress.skip(len(unable))
    working = _Working()
    with ThreadPoolExecutor(max(1, device.cpus() // config.threads)) as pool:
        try:
            replies = {
                pool.submit(_answer, file, there, config, out, device, working): file
                for file in files
                if file.name not in unable
            }
            for done in as_completed(replies):
                file = replies[done]
                answers[file.name] = _scored(file, done.result(), targets, out, score)
                progress.step(f"{file.name}: {len(targets)} answers")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            working.stop()
            raise
    return {file.name: answers[file.name] for file in files}


def _answer(
    file: FileUnderTest,
    there: There,
    config: Bench,
    out: Path,
    device: Device,
    working: _Working,
) -> int | MeasureError:
    """Let ``file`` answer the samples in a process of its own: the batch it took, or why there are no answers."""
    try:
        outputs = device.out(out / _outputs(file))
        with contextlib.closing(device.worker(file.name, config.threads)) as worker:
            working.add(worker)
            import_runtime(worker, file.runtime)
            reply = worker.ask(
                "answers",
                limit_s=LIMIT_S,
                index=there.index,
                out=outputs,
                **{**there.asked(file, config), "batch": ANSWER_BATCH},
            )
        device.get(outputs, out / _outputs(file))
        return int(reply["batch"])
    except MeasureError as error:
        return error


def _scored(
    file: FileUnderTest, batch: int | MeasureError, targets: NDArray[np.int64], out: Path, score: Score
) -> Answers:
    if isinstance(batch, MeasureError):
        return _unanswered(file.name, str(batch))
    scores = f"answers/{file_stem(file.name)}.scores.npy"
    try:
        answered: NDArray[np.float32] = np.load(out / _outputs(file), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        return _unanswered(file.name, f"its answers can't be read: {error}")
    sound = np.isfinite(answered).all(axis=tuple(range(1, answered.ndim)))
    # NaN is never the largest: without this, argmax would call it the first class.
    values = np.asarray(score(np.nan_to_num(answered, nan=-np.inf), targets), dtype=np.float32)
    if values.shape != targets.shape[:1]:
        raise DataError(f"expected one score a sample {targets.shape[:1]}, got {values.shape}", where="score")
    values[~sound] = 0.0
    np.save(out / scores, values)
    return Answers(
        file=file.name,
        samples=len(values),
        mean_score=float(values.astype(np.float64).mean()),
        finite=bool(sound.all()),
        batch=batch,
        outputs=_outputs(file),
        scores=scores,
    )


def _outputs(file: FileUnderTest) -> str:
    return f"answers/{file_stem(file.name)}.npy"


def _unanswered(name: str, error: str) -> Answers:
    return Answers(name, samples=0, mean_score=None, finite=False, batch=0, outputs="", scores="", error=error)


class _Working:
    """The workers that answer now, so that they can be stopped from another thread."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []
        self._stopped = threading.Event()

    def add(self, worker: Worker) -> None:
        self._workers.append(worker)
        if self._stopped.is_set():  # it was started just while the others were stopped
            worker.kill()

    def stop(self) -> None:
        self._stopped.set()
        for worker in self._workers:
            worker.kill()
