"""What `make demo` must leave behind, checked by .ci/run: python tests/demo_outcome.py RUN OUTPUT [FIRST]

RUN is the demo's folder, OUTPUT a file with what `make demo` printed. With FIRST, the output of the first
run, OUTPUT is of a second one: it must have trained nothing, and say the same in a minute.
"""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

MOST_OF_LN_V = 0.65
MOST_SECONDS_AGAIN = 60


def check(run: Path, output: str) -> str:
    """Check a finished demo; return one line of what it reached.

    Raises:
        AssertionError: naming what is missing.
    """
    lines = output.rstrip().splitlines()
    report = run / "report.html"
    assert lines[-1].split() == ["open", str(report)], f"the last line is {lines[-1]!r}"
    manifest = json.loads((run / "manifest.json").read_text())
    loss = manifest["details"]["validation"]["loss"]
    share = loss / math.log(manifest["config"]["model"]["vocab_size"])
    assert share <= MOST_OF_LN_V, f"held-out loss {loss:.3f} is {share:.1%} of ln V, above {MOST_OF_LN_V:.0%}"
    assert f"held-out loss {loss:.3f}" in output, "the demo does not say what it reached"
    assert f"{loss:.3f}" in report.read_text(encoding="utf-8"), f"{report} does not name the loss {loss:.3f}"
    return f"held-out loss {loss:.3f}, {share:.1%} of ln V, {manifest['counts']['tokens']:,} tokens"


def check_again(output: str, first: str) -> None:
    """Check that a finished demo, run again, reached the same at once.

    Raises:
        AssertionError: when it did not.
    """
    for line in first.splitlines():
        if line.startswith("reached: "):
            assert line in output, "run again, the demo does not say what it reached"
    done = re.search(r"^done in ([\d.]+) s\.", output, re.MULTILINE)
    assert done and float(done[1]) < MOST_SECONDS_AGAIN, "run again, the demo took over a minute"


def answer(run: Path, prompt: str) -> str:
    """What the model answers through the command line."""
    puna = Path(sys.executable).with_name("puna")
    command = [puna, "generate", "--model", run, prompt, "--max-tokens", "32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace(prompt, "").strip()
    assert len(text) > 20, f"the model answers {prompt!r} with {text!r}"
    return text


if __name__ == "__main__":
    demo, *outputs = map(Path, sys.argv[1:])
    texts = [path.read_text(encoding="utf-8") for path in outputs]
    print(check(demo, texts[0]))
    if len(texts) == 2:
        check_again(*texts)
    else:
        print(answer(demo, "The history of"))
