"""Where `make peers` has installed each peer: an environment each, because their requirements conflict."""

from pathlib import Path

ENVIRONMENTS = Path(__file__).resolve().parent.parent / ".venv-peers"


def interpreter(peer: str) -> Path | None:
    """The Python that has `peer` (benchmarks/peers-PEER.txt), or None where it is not installed."""
    environment = ENVIRONMENTS / peer
    # The stamp is written last: an environment without it is only half installed.
    return environment / "bin" / "python" if (environment / ".installed").is_file() else None
