"""A source's run that kills itself, with kill -9, as soon as a step has written its first shard.

python -m tests.corpus.killed SOURCE INPUTS OUT STEP
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from puna.corpus.clean import clean_source
from puna.stages import stage

ROOT = Path(__file__).parent.parent.parent


def run_killed(source: str, inputs: Path, out: Path, step: str) -> None:
    """Run until `step` ("." is the last) has written data, and not yet the record that claims it."""
    command = [sys.executable, "-m", "tests.corpus.killed", source, str(inputs), str(out), step]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()


if __name__ == "__main__":
    source, inputs, out, step = sys.argv[1:]
    folder = Path(out) if step == "." else Path(out) / "steps" / step
    write_json = stage.write_json

    def write_or_die(path: Path, value: object) -> None:
        if path.parent == folder and path.name != stage.PLAN:
            os.kill(os.getpid(), signal.SIGKILL)
        write_json(path, value)

    stage.write_json = write_or_die
    clean_source(source, [Path(inputs)], Path(out), executor=stage.Executor(workers=1))
