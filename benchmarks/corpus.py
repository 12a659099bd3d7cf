"""Cleaning web pages against a peer, interleaved in one run; line deduplication; the whole pipeline.

    python benchmarks/corpus.py                     50 MB of text, three rounds
    python benchmarks/corpus.py --mb 200 --rounds 5
    python benchmarks/corpus.py --quick             3 MB, one round: a smoke test
    python benchmarks/corpus.py --only lines        or c4, or pipeline

In:  the real pages under PUNA_REALDATA, repeated with variation into WET files.
Out: MB of text per CPU-second (WET -> language -> C4's rules -> Parquet) and the ratio of puna to datatrove;
     MB per CPU-second and peak memory of line deduplication over 1 and 8 times the input; MB per second of
     CommonCrawl's whole pipeline in two processes.

datatrove gets the same conditions: the same lid.176.ftz and list of bad words from disk, and WET records
with their media type, so that it need not call libmagic. Its full setting counts sentences (spaCy) and
searches for bad words, as puna does; its fast setting does neither. It runs in a separate environment
(`make peers`), or the one of --peers.
"""

import argparse
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from _peers import interpreter

HERE = Path(__file__).resolve().parent
REAL = Path(os.environ.get("PUNA_REALDATA", HERE.parent / "realdata"))
BAD_WORDS = REAL / "c4" / "naughty_words_en.txt"
LANGUAGES = ("deu_1996", "fra", "spa", "nld", "ita", "por_PT", "rus", "pol", "swe", "ces")
MENU = ("Home", "About us", "Contact", "Log in", "Sign up", "Search", "Share this:", "Read more", "Previous")
FOOT = (
    "All rights reserved.",
    "Terms of use",
    "This site uses cookies.",
    "Powered by WordPress",
    "Back to top",
)


# ---- inputs: real pages, repeated with variation ----------------------------------------------------


def real_texts():
    """(English pages, pages in ten other languages), each a list of lists of lines."""
    english, others = [], []
    for path in sorted((REAL / "ccnet_output").glob("*.gz")):
        with gzip.open(path) as file:
            english += [json.loads(line)["text"].split("\n") for line in file]
    with zipfile.ZipFile(REAL / "text_extra" / "udhr2.zip") as archive:
        for name in sorted(archive.namelist()):
            if any(f"/{language}." in f"/{name}" for language in LANGUAGES):
                others.append(archive.read(name).decode("utf-8", "replace").split("\n"))
    return english, others


def varied(lines, words, draw):
    """The lines with some words exchanged: one in five stays as it is, as on the real web."""
    result = []
    for line in lines:
        parts = line.split(" ")
        if len(parts) > 3 and draw.random() < 0.8:
            for _ in range(1 + len(parts) // 20):
                parts[draw.randrange(len(parts) - 1)] = draw.choice(words)
        result.append(" ".join(parts))
    return result


def write_wet(folder, size, n_files, seed):
    """WET files of `size` bytes of text in all: seven of ten pages English, each with its site's menu."""
    folder.mkdir(parents=True)
    english, others = real_texts()
    words = sorted({word for lines in english for line in lines for word in line.split()})
    draw, number, written = random.Random(seed), 0, 0
    for place in range(n_files):
        with (folder / f"CC-MAIN-{seed:03d}-{place:05d}.warc.wet.gz").open("wb") as file:
            while written < size * (place + 1) / n_files:
                site = draw.randrange(3000)
                if draw.random() < 0.7:
                    lines = varied(draw.choice(english), words, draw)
                else:
                    page = draw.choice(others)
                    begin = draw.randrange(len(page))
                    lines = page[begin : begin + 60]
                menu = [f"{item} {site}" if draw.random() < 0.5 else item for item in MENU]
                body = "\n".join([*menu, *lines, *FOOT]).encode()
                head = (
                    "WARC/1.0\r\nWARC-Type: conversion\r\n"
                    f"WARC-Target-URI: https://www.site{site}.org/page/{number}\r\n"
                    "WARC-Date: 2024-05-18T01:58:10Z\r\n"
                    f"WARC-Record-ID: <urn:uuid:{number:08x}-{seed:04x}-4000-8000-000000000000>\r\n"
                    "WARC-Identified-Content-Language: eng\r\nWARC-Identified-Payload-Type: text/plain\r\n"
                    f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
                )
                file.write(gzip.compress(head.encode() + body + b"\r\n\r\n", 6))
                written += len(body)
                number += 1
    return written


# ---- the run -----------------------------------------------------------------------------------


def contestant(name, folder, out, peers):
    """One run of a contestant in a process of its own; None where it is not installed or fails."""
    python = peers if name.startswith("datatrove") else Path(sys.executable)
    if python is None:
        return None
    sys.path.insert(0, str(HERE.parent))
    from puna.corpus.web.language import model_path

    command = [python, HERE / "_corpus_contestant.py", name, folder, out, model_path(), BAD_WORDS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    if not name.startswith("datatrove"):
        environment["PYTHONPATH"] = str(HERE.parent)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        print(f"{name} failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def run(mb, rounds, only, peers):
    result = {}
    with tempfile.TemporaryDirectory(prefix="puna-bench-") as temporary:
        root = Path(temporary)
        write_wet(root / "warm", 2_000_000, 1, seed=99)
        if "c4" in only:
            result["c4"] = {}
            for number in range(rounds):
                folder = root / f"round-{number}"
                size = write_wet(folder / "wet", mb * 1_000_000, 2, seed=number)
                (folder / "warm").symlink_to(root / "warm")
                for name in ("puna", "datatrove", "datatrove fast"):
                    found = contestant(name, folder, root / f"{name.replace(' ', '-')}-{number}", peers)
                    if found:
                        result["c4"].setdefault(name, []).append({**found, "bytes": size})
        if "lines" in only:
            result["lines"] = {}
            for times in (1, 8):
                folder = root / f"lines-{times}"
                write_wet(folder, times * mb * 1_000_000, times, seed=50)
                result["lines"][times] = contestant("lines", folder, root / f"lines-out-{times}", peers)
        if "pipeline" in only:
            result["pipeline"] = []
            for number in range(rounds):
                folder = root / f"pipeline-{number}"
                size = write_wet(folder / "wet", 4 * mb * 1_000_000, 8, seed=70 + number)
                found = contestant("pipeline", folder, root / f"pipeline-out-{number}", peers)
                result["pipeline"].append({**found, "bytes": size})
            one = root / "pipeline-one"
            write_wet(one / "wet", mb * 500_000, 1, seed=90)
            result["pipeline_of_one_file"] = contestant("pipeline", one, root / "pipeline-out-one", peers)
    return result


def show(result):
    if "c4" in result:
        print("WET -> language -> C4's rules -> Parquet, one process")
        print(f"{'':16}{'MB/CPU-s':>9}  {'range':>14}  {'puna is':>8}  {'peak MB':>8}  kept")
        rates = {
            name: [item["bytes"] / 1e6 / item["cpu"] for item in items]
            for name, items in result["c4"].items()
        }
        for name, items in result["c4"].items():
            median = statistics.median(rates[name])
            times = statistics.median(a / b for a, b in zip(rates["puna"], rates[name], strict=True))
            low, high = min(rates[name]), max(rates[name])
            print(
                f"{name:16}{median:9.1f}  {low:6.1f} - {high:5.1f}  {times:7.1f}x  "
                f"{max(item['rss_mb'] for item in items):8.0f}  {items[0]['kept']:,}"
            )
        if "datatrove" not in result["c4"]:
            print("datatrove is not installed; make peers")
    if "lines" in result:
        print("line deduplication, one process")
        for times, item in result["lines"].items():
            size = item["bytes"] / 1e6
            print(
                f"{times}x: {size:,.0f} MB at {size / item['cpu']:.1f} MB/CPU-s, "
                f"peak {item['rss_mb']:.0f} MB, {item['removed']:,} lines removed"
            )
    if "pipeline" in result:
        wall, work, cpu = (
            [item["bytes"] / 1e6 / item[key] for item in result["pipeline"]]
            for key in ("wall", "work", "cpu")
        )
        size = result["pipeline"][0]["bytes"] / 1e6
        print(f"CommonCrawl's whole pipeline, {size:,.0f} MB in 8 files, two processes")
        print(
            f"{statistics.median(wall):.1f} MB/s ({min(wall):.1f} - {max(wall):.1f}) with the start of "
            f"processes, {2 * statistics.median(work):.1f} without; {statistics.median(cpu):.1f} MB/CPU-s"
        )
        peaks = [item["child_rss_mb"] for item in (result["pipeline_of_one_file"], *result["pipeline"])]
        print(f"peak of a process: {peaks[0]:.0f} MB for 1 file, {max(peaks[1:]):.0f} MB for 8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Cleaning web pages against a peer.")
    parser.add_argument("--mb", type=int, help="default 50, with --quick 3")
    parser.add_argument("--rounds", type=int, help="default 3, with --quick 1")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=["c4", "lines", "pipeline"], action="append")
    parser.add_argument(
        "--peers", type=Path, default=interpreter("datatrove"), help="a Python with datatrove"
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not (REAL / "ccnet_output").is_dir():
        print("skipped: no real pages; set PUNA_REALDATA to the folder that holds ccnet_output")
        sys.exit(0)
    mb, rounds = given.mb or (3 if given.quick else 50), given.rounds or (1 if given.quick else 3)
    measured = run(mb, rounds, given.only or ["c4", "lines", "pipeline"], given.peers)
    print(json.dumps(measured)) if given.json else show(measured)
