"""SST-2: how much of a text encoder is left when it is half as deep, a tenth as large, or no transformer at all.

    python benchmarks/text/run.py --data FOLDER --out runs/sst2
    python benchmarks/text/run.py --data FOLDER --out runs/sst2 --arms tinybert tinybert-labels --seeds 0 1 2
    python benchmarks/text/summarise.py --out runs/sst2

FOLDER holds sst2/{train,dev,test}.tsv, sst2/train_phrases.tsv and all-MiniLM-L6-v2/ as recipes/sst2/*.yaml say. Each
arm is `edgewise run` with a recipe that is written to OUT/recipes: what is finished is skipped, what was cut off goes
on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from arms import ARMS, TEACHER, Recipe, recipe_of, teacher_recipe


class Plain(yaml.SafeDumper):
    """Writes everything out: a recipe has no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        """Always."""
        return True


def run(name: str, recipe: Recipe, out: Path) -> int:
    """`edgewise run` in a process of its own; its exit code."""
    file, folder, log = out / "recipes" / f"{name}.yaml", out / name, out / "logs" / f"{name}.log"
    for parent in (file.parent, log.parent):
        parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.dump(recipe, Dumper=Plain, sort_keys=False), encoding="utf-8")
    started = time.monotonic()
    print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
    with log.open("a", encoding="utf-8") as lines:
        command = [sys.executable, "-m", "edgewise", "run", str(file), "--out", str(folder)]
        code = subprocess.run(
            command, stdout=lines, stderr=subprocess.STDOUT, check=False, env=_environment()
        ).returncode
    told = "done" if code == 0 else f"FAILED with exit code {code}, see {log}"
    print(f"{time.strftime('%H:%M:%S')} {name} {told} in {time.monotonic() - started:.0f} s", flush=True)
    return code


def share(seed: int, folder: Path, out: Path) -> None:
    """Give a run what other arms of its seed made of the teacher: finished stages are found by their content."""
    for pattern in ("samples-*", "teacher-*", "export-teacher-*", "*-float32-teacher-*"):
        for stage in out.glob(f"*.{seed}/stages/{pattern}"):
            there = folder / "stages" / stage.name
            if stage.suffix != ".partial" and not there.exists():
                shutil.copytree(stage, there, copy_function=os.link)


def arm_run(arm: str, seed: int, data: Path, weights: Path, out: Path) -> int:
    """One arm with one seed."""
    share(seed, out / f"{arm}.{seed}", out)
    return run(f"{arm}.{seed}", recipe_of(arm, seed, data, weights), out)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def weights_of_teacher(out: Path) -> Path:
    """The fine-tuned teacher's tensors, in the folder of its run."""
    (stage,) = (out / TEACHER / "stages").glob("teacher-*")
    return stage / "model.safetensors"


def main() -> int:
    """0; 1 where an arm failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/sst2"))
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS), help="none: the teacher alone")
    parser.add_argument("--teacher", type=Path, help="tensors of a teacher that was fine-tuned before")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    if given.teacher is None and run(TEACHER, teacher_recipe(given.data), given.out):
        return 1
    weights = given.teacher.resolve() if given.teacher else weights_of_teacher(given.out)
    # A whole seed after the other, so that work that is stopped early leaves complete pairs.
    todo = [(arm, seed) for seed in given.seeds for arm in given.arms]
    with ThreadPoolExecutor(given.processes) as pool:
        jobs = [pool.submit(arm_run, arm, seed, given.data, weights, given.out) for arm, seed in todo]
    return 1 if any(job.result() for job in jobs) else 0


if __name__ == "__main__":
    sys.exit(main())
