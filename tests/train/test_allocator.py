"""The command starts itself again with the allocator's settings, once, and only when it is the command."""

import os
import subprocess
import sys

import pytest

from puna.train.allocator import KEEP

SCRIPT = """
import os, sys
from puna.train.allocator import is_kept, keep_freed_memory
keep_freed_memory()
print(is_kept(), sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
@pytest.mark.parametrize(("name", "kept"), [("puna", True), ("pytest", False)])
def test_the_command_and_nothing_else_is_started_again(tmp_path, name, kept):
    script = tmp_path / name
    script.write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key not in KEEP}
    done = subprocess.run(
        [sys.executable, str(script), "a", "b c"], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == f"{kept} ['a', 'b c']"
