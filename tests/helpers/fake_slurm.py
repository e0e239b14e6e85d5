"""sbatch, srun, sacct and scancel of a Slurm that runs jobs on this machine, one after another, as soon as they come.

sbatch FILE               run FILE once for each number of its #SBATCH --array, and print the job's id
srun [OPTIONS] COMMAND    run COMMAND, whose first word is a path
sacct, scancel            say nothing: the results are found by their files
"""

import os
import re
import subprocess
import sys
from pathlib import Path

NAMES = ("sbatch", "srun", "sacct", "scancel")
JOB = 4711


def install(folder: Path) -> str:
    """Write the commands into a folder, and return the PATH that has them first."""
    for name in NAMES:
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def sbatch(file: str) -> None:
    """Start the tasks of an array in a process of their own, as Slurm does."""
    text = Path(file).read_text()
    Path("submitted.sh").write_text(text)
    first, last = map(int, re.search(r"--array=(\d+)-(\d+)", text).groups())
    print(f"Submitted batch job {JOB}", flush=True)
    if os.fork():
        return
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(1, 2)
    for number in range(first, last + 1):
        task = {"SLURM_JOB_ID": f"{JOB + number}", "SLURM_ARRAY_JOB_ID": f"{JOB}", "SLURM_ARRAY_TASK_ID": f"{number}"}
        one = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "1"}
        place = {"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "here"}
        subprocess.run(["bash", file], env=os.environ | task | one | place)


def srun(*words: str) -> None:
    """Run the command after the options."""
    start = next(number for number, word in enumerate(words) if word.startswith("/") and "python" in word)
    os.execv(words[start], words[start:])


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command in ("sbatch", "srun"):
        {"sbatch": sbatch, "srun": srun}[command](*rest)
