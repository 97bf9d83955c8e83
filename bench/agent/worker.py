"""The process that runs one file: JSON Lines in, JSON Lines out, then ``{"type": "end"}``.

Python >= 3.8, numpy and one runtime. It does one thing at a time and only when asked, so of many workers alive, at most
one computes. Requests: import, load, first, warmup, block, answers, close; each gets one reply with ``"type"`` the name
of the request, or ``"error"``.

Memory is the kernel's own high-water mark (VmHWM), reset before each phase; nothing polls while time is taken.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import platform
import resource
import signal
import sys
import time
import traceback
from typing import IO, Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from edgewise.bench.agent import load, texts
from edgewise.bench.agent.cache import page_cache
from edgewise.deploy import runtimes
from edgewise.errors import EdgewiseError, MeasureError

PROTOCOL = 2
FEEDS = 64  # real samples that the timed inferences cycle through
SETTLE = 0.1  # of a block's time is run untimed first: another process had the caches a moment ago
WARMUP_RUNS = 3
WARMUP_CAP_RUNS = 200
WARMUP_CAP_S = 10.0
# How a phase calls what /proc/self/status has.
MEMORY = {
    "peak_bytes": "VmHWM",
    "resident_bytes": "VmRSS",
    "anonymous_bytes": "RssAnon",
    "file_bytes": "RssFile",
    "shared_bytes": "RssShmem",
}


class State:
    """What a worker holds between requests."""

    def __init__(self) -> None:
        """Nothing is held yet."""
        self.runtime = None  # type: Optional[runtimes.Runtime]
        self.session = None  # type: Optional[runtimes.Session]
        self.streams = []  # type: List[runtimes.Session]
        self.feeds = []  # type: List[Dict[str, np.ndarray]]
        self.turn = 0

    def opened(self) -> runtimes.Session:
        """The open session, or a MeasureError."""
        if self.session is None:
            raise MeasureError("no file is open", hint="ask for load first")
        return self.session

    def run_next(self) -> None:
        """One inference on the next sample."""
        feeds = self.feeds[self.turn % len(self.feeds)]
        self.turn += 1
        self.opened().run(feeds)


def memory() -> Dict[str, Optional[int]]:
    """Peak since the last reset, and what is resident now, in all and by kind; None where the kernel doesn't say."""
    found = _kilobytes("/proc/self/status")
    return {name: found.get(key) for name, key in MEMORY.items()}


def shared_out() -> Optional[int]:
    """Bytes of this process, each page divided by how many processes share it; None where the kernel doesn't say.

    The kernel walks all pages for it, which takes milliseconds: never while time is taken.
    """
    return _kilobytes("/proc/self/smaps_rollup").get("Pss")


def _kilobytes(path: str) -> Dict[str, int]:
    found = {}  # type: Dict[str, int]
    try:
        with open(path, "rb") as status:
            for line in status:
                key, _, value = line.partition(b":")
                if value.endswith(b" kB\n"):
                    found[key.decode()] = int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return {}
    return found


def reset_peak() -> None:
    """Let VmHWM start again from what is resident now; where that isn't allowed, peaks grow from phase to phase."""
    try:
        with open("/proc/self/clear_refs", "wb", buffering=0) as clear:
            clear.write(b"5")
    except OSError:
        pass


def phase(work: Callable[[], Any]) -> Tuple[Any, Dict[str, Any]]:
    """Do ``work``; its result, and how long it took and what it held."""
    reset_peak()
    start = time.perf_counter_ns()
    result = work()
    took = time.perf_counter_ns() - start
    return result, dict(memory(), duration_ns=took)


def converged(samples: List[int]) -> bool:
    """Whether the two latest windows of a warm-up look alike: means, quartiles and spread.

    The windows are the third and the last quarter of what ran so far. Limits as in pyperf's calibration of warm-ups.
    """
    window = len(samples) // 4
    if window < 3:
        return False
    before = np.asarray(samples[-2 * window : -window], dtype=float)
    after = np.asarray(samples[-window:], dtype=float)
    low, high = np.percentile(before, [25, 75]), np.percentile(after, [25, 75])
    spread = high[1] - high[0]
    if not high[0] - 1.5 * spread <= after[0] <= high[1] + 1.5 * spread:
        return False
    if not -0.5 <= before.mean() / after.mean() - 1 <= 0.1:
        return False
    if np.any(np.abs(low / high - 1) > 0.05):
        return False
    mad = [float(np.median(np.abs(values - np.median(values)))) for values in (before, after)]
    return abs(mad[0] - mad[1]) <= 0.1 * max(mad)


def do_import(state: State, request: Dict[str, Any]) -> Dict[str, Any]:
    """Import the runtime's library."""

    def work() -> Optional[str]:
        state.runtime = runtimes.get(request["runtime"])
        return state.runtime.missing()

    missing, took = phase(work)
    if missing:
        raise MeasureError(missing, where=str(request["runtime"]))
    return {"phase": took, "protocol": PROTOCOL, "python": platform.python_version(), "numpy": np.__version__}


def do_load(state: State, request: Dict[str, Any]) -> Dict[str, Any]:
    """Open the file, and read back what the runtime says it does."""
    runtime = state.runtime
    if runtime is None:
        raise MeasureError("no runtime is imported", hint="ask for import first")
    options = runtimes.Options(request["threads"], request["precision"], request["batch"], request.get("streams", 1))
    cached = page_cache(request["path"])
    state.session, took = phase(lambda: runtime.open(request["path"], options))
    inputs = [[spec.name, list(spec.shape), spec.dtype] for spec in state.opened().inputs]
    return {"phase": took, "settings": state.opened().settings, "inputs": inputs, "page_cache": cached}


def do_first(state: State, request: Dict[str, Any]) -> Dict[str, Any]:
    """Read the samples to time with, (N, C, H, W) or token ids (N, L), and run the first inference.

    Texts: ``padding`` is the id that they are filled up with, ``length`` a length to bring all of them to.
    """
    samples = np.load(request["inputs"], mmap_mode="r", allow_pickle=False)
    if len(samples) == 0:
        raise MeasureError("expected at least one sample, got none", where=str(request["inputs"]))
    batch, padding, length = request["batch"], request.get("padding"), request.get("length")
    count = max(1, min(FEEDS, len(samples)) // batch)
    spec = state.opened().inputs[0]
    turns = np.arange(count * batch) % len(samples)
    if padding is not None:
        turns = texts.spread(samples, padding, count * batch)
    elif length is not None:
        raise MeasureError("only texts have a length, and these samples are none", where="length")
    for start in range(0, len(turns), batch):
        fed = np.ascontiguousarray(samples[turns[start : start + batch]])
        if padding is not None and length is not None:
            fed = np.concatenate(texts.of_length(fed, padding, length, spec))
        elif padding is not None:
            fed = texts.cut(fed, padding, spec)
        state.feeds.append({spec.name: fed})
    runtimes.check_feeds(state.opened().inputs, state.feeds[0])
    _, took = phase(state.run_next)
    return {"phase": took}


def do_warmup(state: State, request: Dict[str, Any]) -> Dict[str, Any]:
    """Run until times settle: at least 3 runs and ``seconds``, at most 10 s or (200 runs and 4 x ``seconds``)."""
    samples = []  # type: List[int]
    seconds = request["seconds"]

    def work() -> bool:
        start = time.perf_counter()
        checked = 0.0
        while True:
            before = time.perf_counter_ns()
            state.run_next()
            samples.append(time.perf_counter_ns() - before)
            spent = time.perf_counter() - start
            if len(samples) < WARMUP_RUNS or spent < seconds:
                continue
            # Looking costs more than a short inference: look again only after a tenth more time.
            if spent >= 1.1 * checked:
                checked = spent
                if converged(samples):
                    return True
            if spent >= WARMUP_CAP_S or (len(samples) >= WARMUP_CAP_RUNS and spent >= 4 * seconds):
                return False

    settled, took = phase(work)
    # From here on memory doesn't change by much, so the collector would only add noise to the samples.
    gc.collect()
    gc.freeze()
    reset_peak()
    return {"phase": took, "samples_ns": samples, "converged": settled}


def do_block(state: State, request: Dict[str, Any]) -> Dict[str, Any]:
    """Run for ``ms``, keep every time. At least one run, however long it takes."""
    length = int(request["ms"] * 1e6)
    run, feeds, count = state.opened().run, state.feeds, len(state.feeds)
    clock = time.perf_counter_ns
    turn, settle_runs = state.turn, 0
    gc.disable()
    try:
        settled = clock() + int(length * SETTLE)
        while True:
            run(feeds[turn % count])
            turn += 1
            settle_runs += 1
            if clock() >= settled:
                break
        samples = []  # type: List[int]
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu, own = time.process_time_ns(), time.thread_time_ns()
        began = time.monotonic_ns()
        start = clock()
        end = start + length
        while True:
            feed = feeds[turn % count]
            before = clock()
            run(feed)
            after = clock()
            samples.append(after - before)
            turn += 1
            if after >= end:
                break
        wall = clock() - start
        cpu, own = time.process_time_ns() - cpu, time.thread_time_ns() - own
    finally:
        gc.enable()
    state.turn = turn
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - usage.ru_nivcsw
    return {
        "samples_ns": samples,
        "start_ns": began,
        "wall_ns": wall,
        "thread_cpu_ns": own,
        "process_cpu_ns": cpu,
        "nivcsw": switches,
        "settle_runs": settle_runs,
        "memory": memory(),
    }


def do_answers(state: State, request: Dict[str, Any]) -> Dict[str, Any]:
    """Answer the samples at ``index`` and save float32 (N, K) to ``out``; (N, L, K) where each token is answered.

    Runs batches of ``batch``, unless the runtime won't or a few answers differ from those to single samples: then one
    by one, for that is how the file is used.
    """
    inputs = np.load(request["inputs"], mmap_mode="r", allow_pickle=False)
    index = np.load(request["index"], allow_pickle=False)
    batch = min(int(request["batch"]), len(index))
    if batch > 1:
        probe = index[np.linspace(0, len(index) - 1, min(16, len(index))).astype(int)]
        alone = _answer(state, request, inputs, probe, 1)
        try:
            together = _answer(state, request, inputs, probe, batch)
            same = np.allclose(together, alone, rtol=0, atol=1e-3 * float(np.abs(alone).max()), equal_nan=True)
        # Each runtime has its own errors for a batch that doesn't fit; what fails one by one fails below, loudly.
        except Exception:
            same = False
        batch = batch if same else 1
    outputs = _answer(state, request, inputs, index, batch)
    with open(request["out"], "wb") as out:
        np.save(out, outputs, allow_pickle=False)
    return {"batch": batch, "samples": len(outputs), "finite": bool(np.isfinite(outputs).all())}


def _answer(state: State, request: Dict[str, Any], inputs: np.ndarray, index: np.ndarray, batch: int) -> np.ndarray:
    runtime = state.runtime
    if runtime is None:
        raise MeasureError("no runtime is imported", hint="ask for import first")
    session = runtime.open(request["path"], runtimes.Options(request["threads"], request["precision"], batch))
    try:
        spec, output = session.inputs[0], session.outputs[0].name
        rows = []  # type: List[np.ndarray]
        padding = request.get("padding")
        for start in range(0, len(index), batch):
            part = index[start : start + batch]
            # The last batch is filled up with its last sample: a file may have its batch size fixed.
            padded = np.concatenate([part, np.repeat(part[-1:], batch - len(part))])
            fed = np.ascontiguousarray(inputs[padded])
            feeds = {spec.name: fed if padding is None else texts.cut(fed, padding, spec)}
            if start == 0:
                runtimes.check_feeds(session.inputs, feeds)
            # A runtime may hand out the same buffer again: copy.
            row = np.array(session.run(feeds)[output], dtype=np.float32)
            if len(row) != batch:
                raise MeasureError("expected %d answers, got shape %s" % (batch, row.shape), where=output)
            row = row.reshape(batch, -1) if padding is None else texts.whole(row, inputs.shape[1])
            rows.append(row[: len(part)])
        return np.concatenate(rows)
    finally:
        session.close()


def do_close(state: State, request: Dict[str, Any]) -> Dict[str, Any]:
    """Close the file. The peak up to here belongs to the steady phase."""
    steady = memory()
    share = shared_out()

    def work() -> None:
        for session in state.streams:
            session.close()
        if state.session is not None:
            state.session.close()
        state.session, state.streams = None, []
        state.feeds = []
        gc.collect()

    _, took = phase(work)
    return {"phase": took, "steady": steady, "pss_bytes": share}


REQUESTS = {
    "import": do_import,
    "load": do_load,
    "first": do_first,
    "warmup": do_warmup,
    "block": do_block,
    "scenario": load.do_scenario,
    "answers": do_answers,
    "close": do_close,
}  # type: Dict[str, Callable[[State, Dict[str, Any]], Dict[str, Any]]]


def serve(requests: IO[str], replies: IO[str]) -> int:
    """Answer until ``close``, the end of ``requests``, or an error; the exit status."""
    state = State()

    def say(reply: Dict[str, Any]) -> None:
        replies.write(json.dumps(reply, default=str) + "\n")
        replies.flush()

    for line in requests:
        try:
            request = json.loads(line)
            name = request["do"]
            if name not in REQUESTS:
                raise MeasureError("no request %r; there are %s" % (name, ", ".join(REQUESTS)))
            say(dict(REQUESTS[name](state, request), type=name))
        # The other side decides what an error means, whatever it is: it must always get its reply.
        except Exception as error:
            with contextlib.suppress(OSError):  # the disk may be full, which may be this very error
                traceback.print_exc()
            message = str(error) if isinstance(error, EdgewiseError) else repr(error)
            number = getattr(error, "errno", None)
            say({"type": "error", "kind": type(error).__name__, "message": message, "errno": number})
            say({"type": "end", "rc": 1})
            return 1
        if name == "close":
            break
    say({"type": "end", "rc": 0})
    return 0


def end_with_parent() -> bool:
    """On Linux, be killed when the process that started this one is; False where it is gone already."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    return os.environ.get("EDGEWISE_PARENT", str(os.getppid())) == str(os.getppid())


def main() -> int:
    """Serve stdin. Libraries may print: what they write to stdout goes to stderr, only replies use the real one."""
    if not end_with_parent():
        return 1
    sys.stdout.flush()
    private = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    with os.fdopen(private, "w", encoding="utf-8") as replies:
        return serve(sys.stdin, replies)


if __name__ == "__main__":
    sys.exit(main())
