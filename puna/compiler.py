"""The C++ compiler of this machine, for the sources that puna compiles where it runs."""

import os
import shlex
import shutil


def compiler() -> tuple[str, ...] | None:
    """The compiler's command: $CXX, which may have arguments (`ccache g++`), else g++ or clang++; or None."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    candidates = [chosen] if chosen else [["g++"], ["clang++"]]
    for program, *arguments in candidates:
        if path := shutil.which(program):
            return path, *arguments
    return None
