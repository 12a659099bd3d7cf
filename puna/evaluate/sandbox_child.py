"""The two processes of a sandboxed test. Passed to `python -c`; it imports nothing of puna.

    judge: prompt and tests ──call solve(3)──> candidate: the generated program
                            <──── 9, as data ──

The candidate never sees the tests, and the judge never runs the candidate's code: it receives values,
rebuilt from JSON as plain numbers, texts and containers. What is no such value is a reference that equals
only itself, so an object that claims to equal everything fails. Only the judge has the descriptor that the
verdict is written to.
"""

import ast
import builtins
import json
import os
import resource
import sys
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Any

LARGEST = 8 << 20  # bytes of a message
CONTAINERS: tuple[tuple[Any, str], ...] = ((list, "l"), (tuple, "t"), (set, "S"), (frozenset, "F"))
MOST = 200_000  # items of an iterator that a test looks at


def limit(memory: int, seconds: int, processes: int, file_bytes: int, user: int) -> None:
    """Lower this process's hard limits, which it cannot raise again, and become another user unless 0."""
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    for name, value in (
        ("AS", memory),
        ("CPU", seconds),
        ("NPROC", processes),
        ("FSIZE", file_bytes),
        ("NOFILE", 64),
        ("CORE", 0),
    ):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


class Wire:
    """Messages over two descriptors: a line of JSON each."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = os.fdopen(read, "rb"), os.fdopen(write, "wb")

    def send(self, message: Any) -> None:
        """Write a message."""
        data = json.dumps(message).encode() + b"\n"
        if len(data) > LARGEST:
            raise ValueError(f"a value of {len(data)} bytes is too large")
        self._write.write(data)
        self._write.flush()

    def receive(self) -> Any:
        """Read a message; EOFError when the other side ended or sends something else."""
        data = self._read.readline(LARGEST)
        if not data.endswith(b"\n"):
            raise EOFError
        return json.loads(data)


def encode(value: Any, refer: Any) -> Any:
    """A value as JSON: the plain types and their subclasses by value, others through `refer`."""
    if value is None or value is True or value is False:
        return value
    # Through the plain types' own methods: a subclass's may say something else.
    scalars: tuple[tuple[type, Any], ...] = ((str, str.__str__), (int, int.__int__), (float, float.__float__))
    for kind, plain in scalars:
        if isinstance(value, kind):
            return plain(value)
    for container, tag in CONTAINERS:
        if isinstance(value, container):
            return [tag, *(encode(item, refer) for item in container.__iter__(value))]
    if isinstance(value, dict):
        return ["d", *([encode(k, refer), encode(v, refer)] for k, v in dict.items(value))]
    if isinstance(value, (bytes, bytearray)):
        return ["b", bytes(value).hex()]
    if isinstance(value, complex):
        return ["c", value.real, value.imag]
    if isinstance(value, range):
        return ["R", value.start, value.stop, value.step]
    if type(value) in (Decimal, Fraction):
        return [type(value).__name__, str(value)]
    if isinstance(value, type) and vars(builtins).get(name := str(value.__name__)) is value:
        return ["T", name]
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return encode(value.tolist(), refer)
    return refer(value)


def decode(data: Any, resolve: Any) -> Any:
    """The value of JSON data; references through `resolve`."""
    if not isinstance(data, list):
        return data
    tag, *items = data
    match tag:
        case "l":
            return [decode(item, resolve) for item in items]
        case "t":
            return tuple(decode(item, resolve) for item in items)
        case "S":
            return {decode(item, resolve) for item in items}
        case "F":
            return frozenset(decode(item, resolve) for item in items)
        case "d":
            return {decode(k, resolve): decode(v, resolve) for k, v in items}
        case "b":
            return bytes.fromhex(items[0])
        case "c":
            return complex(*items)
        case "R":
            return range(*items)
        case "Decimal":
            return Decimal(items[0])
        case "Fraction":
            return Fraction(items[0])
        case "T" if isinstance(kind := getattr(builtins, items[0]), type):
            return kind
        case "ref":
            return resolve(*items)
    raise ValueError(f"unknown tag {tag!r}")


def candidate(wire: Wire, program: str) -> None:
    """Run a program, then answer the judge's requests about it until the judge ends."""
    kept: list[Any] = []

    def refer(value: Any) -> Any:
        kept.append(value)
        return ["ref", len(kept) - 1, type(value).__name__]

    def resolve(index: int, _: str) -> Any:
        return kept[index]

    def answer(operation: str, *arguments: Any) -> Any:
        values = [decode(argument, resolve) for argument in arguments]
        match operation:
            case "name":
                return namespace[values[0]]
            case "call":
                return values[0](*values[1], **values[2])
            case "get":
                return getattr(values[0], values[1])
            case "set":
                return setattr(*values)
            case "item":
                return values[0][values[1]]
            case "bool":
                return bool(values[0])
            case "len":
                return len(values[0])
            case "list":
                return list(islice(iter(values[0]), MOST))
        raise ValueError(operation)

    namespace: dict[str, Any] = {"__name__": "candidate"}
    error = ""
    try:
        exec(compile(program, "candidate.py", "exec"), namespace)
    except BaseException as raised:
        error = f"{type(raised).__name__}: {raised}"[:500]
    wire.send({"error": error} if error else {"value": None})
    while True:
        request = wire.receive()
        try:
            reply = {"value": encode(answer(*request), refer)}
        except BaseException as raised:
            reply = {"error": f"{type(raised).__name__}: {raised}"[:500]}
        try:
            wire.send(reply)
        except ValueError as raised:
            wire.send({"error": f"ValueError: {raised}"})


class Remote:
    """An object of the candidate. It equals only itself."""

    def __init__(self, wire: "Client", index: int, kind: str) -> None:
        self.__dict__.update(_wire=wire, _index=index, _kind=kind)

    def _data(self) -> Any:
        return ["ref", self._index, self._kind]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the object in the program."""
        return self._wire.ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._wire.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._wire.ask("set", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._wire.ask("item", self, key)

    def __iter__(self) -> Any:
        return iter(self._wire.ask("list", self))

    def __len__(self) -> int:
        return int(self._wire.ask("len", self))

    def __bool__(self) -> bool:
        return bool(self._wire.ask("bool", self))


class Client:
    """The judge's side of the wire."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def ask(self, *request: Any) -> Any:
        """Send a request; the value of its reply, or the candidate's exception."""

        def refer(value: Any) -> Any:
            if isinstance(value, Remote):
                return value._data()
            raise TypeError(f"unsupported argument {type(value).__name__}: tests pass plain values")

        self._wire.send([encode(part, refer) for part in request])
        return self.reply()

    def reply(self) -> Any:
        """The value of the next reply.

        Raises:
            EOFError: when the candidate ended, or replied with something else.
        """
        try:
            message = self._wire.receive()
            error = message.get("error")
            value = None if error else decode(message["value"], self._remote)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as raised:
            raise EOFError(f"malformed reply: {raised}") from raised
        if error:
            name, _, text = str(error).partition(": ")
            kind = vars(builtins).get(name)
            if isinstance(kind, type) and issubclass(kind, Exception) and kind is not AssertionError:
                raise kind(text)
            raise RuntimeError(error)
        return value

    def _remote(self, index: int, kind: str) -> Remote:
        return Remote(self, int(index), str(kind))


def judge(wire: Wire, prompt: str, tests: str, entry: str) -> tuple[bool, str]:
    """Run the tests against the candidate: (passed, why)."""
    client = Client(wire)
    try:
        client.reply()  # that the program ran
        namespace: dict[str, Any] = {"__name__": "tests"}
        exec(compile(prompt, "prompt.py", "exec"), namespace)
        tree = ast.parse(tests)
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        bound |= {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        for name in sorted(names):
            if name in entry.split() or not (name in bound or name in namespace or hasattr(builtins, name)):
                try:
                    namespace[name] = client.ask("name", name)
                except KeyError:
                    continue  # a test's own import or parameter; else its NameError says so
        exec(compile(tests, "tests.py", "exec"), namespace)
    except EOFError as error:
        return False, str(error) or "the program ended before its tests did"
    except BaseException as error:
        return False, f"{type(error).__name__}: {error}"[:500]
    return True, "passed"


def main() -> None:
    """Arguments: role, descriptors (read, write, verdict), limits. The job comes on stdin."""
    role, read, write, verdict, *limits = sys.argv[1:]
    job = json.loads(sys.stdin.buffer.read())
    sys.set_int_max_str_digits(0)
    limit(*map(int, limits))
    wire = Wire(int(read), int(write))
    if role == "judge":
        passed, why = judge(wire, job["prompt"], job["tests"], job["entry"])
        os.write(int(verdict), json.dumps([passed, why]).encode())
    else:
        sys.argv[:] = [""]
        with suppress(EOFError):  # the judge ended
            candidate(wire, job["program"])
    os._exit(0)


if __name__ == "__main__":
    main()
