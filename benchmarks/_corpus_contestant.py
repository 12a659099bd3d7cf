"""One contestant of corpus.py, in a separate process: cleans WET files, prints one line of JSON.

python _corpus_contestant.py NAME FOLDER OUT MODEL BAD_WORDS

Everything is imported and loaded, and a first small file is cleaned, before the clock is started.
"""

import json
import resource
import sys
import time
from functools import partial
from pathlib import Path


def datatrove(folder, out, model, bad_words, fast):
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline import filters
    from datatrove.pipeline.filters import c4_filters
    from datatrove.pipeline.readers import WarcReader
    from datatrove.pipeline.writers import ParquetWriter
    from datatrove.utils import lid
    from loguru import logger

    logger.remove()
    # Its model and its list are downloaded; here they are the same files that puna is given.
    lid.cached_asset_path_or_download = lambda *_, **__: str(model)
    c4_filters.cached_asset_path_or_download = lambda *_, **__: str(bad_words)
    rules = {"min_words_per_line": 5, "min_num_sentences": -1 if fast else 3}
    steps = [
        WarcReader(str(folder), glob_pattern="*.gz"),
        filters.LanguageFilter(["en"], language_threshold=0.5),
        filters.C4QualityFilter(**rules),
        *([] if fast else [filters.C4BadWordsFilter()]),
        ParquetWriter(str(out), compression="zstd"),
    ]
    LocalPipelineExecutor(steps, tasks=1, workers=1, logging_dir=str(out) + "-logs").run()


def puna(folder, out, bad_words):
    from puna.corpus.c4.source import Options
    from puna.corpus.clean import clean_source
    from puna.stages.stage import Executor

    options = Options(deduplicate=False, bad_words=str(bad_words))
    clean_source("c4", [folder], out, options, Executor(workers=1))


def lines(folder, out):
    """Line deduplication alone: seconds of its own parts, without reading and writing pages."""
    from puna.corpus.commoncrawl.source import Options, clean, read
    from puna.corpus.dedup import lines
    from puna.corpus.dedup.hash_ranges import RangeWriter
    from puna.corpus.document import Document
    from puna.corpus.pipeline import by_size, n_ranges_for
    from puna.stages.stage import Shard

    seconds, size, removed = 0.0, 0, 0
    files = sorted(folder.glob("*.gz"))
    n_ranges = n_ranges_for(files)

    def batches(file):
        results = (clean(page, Options()) for page in read(file))
        return by_size((item for item in results if isinstance(item, Document)), lambda item: len(item.text))

    for shard, file in enumerate(files):
        began = time.process_time()
        with RangeWriter(out / f"{shard}.ranges", lines.LINE_FIELDS, n_ranges) as ranges:
            seconds += time.process_time() - began
            seen = 0
            for batch in batches(file):
                began = time.process_time()
                hashes = lines.line_hashes(document.text for document in batch)
                ranges.add(lines.line_records(hashes, shard, seen))
                seconds += time.process_time() - began
                seen += len(hashes)
                size += sum(len(document.text.encode()) for document in batch)
            began = time.process_time()
        seconds += time.process_time() - began
    began = time.process_time()
    written = [out / f"{shard}.ranges" for shard in range(len(files))]
    shards = [Shard(f"range-{number:05d}", ()) for number in range(n_ranges)]
    places = [out / f"{shard.name}.npy" for shard in shards]
    for shard in shards:
        removed += lines.write_repeated(written, False, ["removed"], shard, out)["counts"]["removed"]
    seconds += time.process_time() - began
    for shard, file in enumerate(files):
        began = time.process_time()
        gone = lines.repeated_in(places, shard)
        seconds += time.process_time() - began
        seen = done = 0
        for batch in batches(file):
            began = time.process_time()
            for document in batch:
                count = document.text.count("\n") + 1
                upto = done + int(gone[done:].searchsorted(seen + count))
                if upto > done:
                    lines.without_lines(document.text, gone[done:upto] - seen)
                seen, done = seen + count, upto
            seconds += time.process_time() - began
    return {"cpu": seconds, "bytes": size, "removed": removed}


def pipeline(folder, out, workers):
    """CommonCrawl's whole pipeline without the models, in processes. Returns the seconds of work in them."""
    from puna.corpus import pipeline as steps
    from puna.corpus.clean import clean_source
    from puna.stages.stage import Executor, plan_shards

    # A shard a file, as of real dumps, whose files are larger than these.
    steps.plan_shards = partial(plan_shards, shard_bytes=1)
    return clean_source("commoncrawl", [folder], out, executor=Executor(workers=workers)).seconds


def main(name, folder, out, model, bad_words):
    if name == "lines":
        out.mkdir(parents=True)
        found = lines(folder, out)
        found["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        return found
    runs = {
        "puna": lambda folder, out: puna(folder, out, bad_words),
        "datatrove": lambda folder, out: datatrove(folder, out, model, bad_words, fast=False),
        "datatrove fast": lambda folder, out: datatrove(folder, out, model, bad_words, fast=True),
        "pipeline": lambda folder, out: pipeline(folder, out, workers=2),
    }
    if name != "pipeline":
        runs[name](folder / "warm", out.with_name(out.name + "-warm"))
    wall, cpu = time.perf_counter(), spent()
    work = runs[name](folder / "wet", out)
    return {
        "work": work,
        "wall": time.perf_counter() - wall,
        "cpu": spent() - cpu,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "child_rss_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3,
        "kept": kept(out),
    }


def spent():
    """CPU seconds of this process and of those it waited for."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def kept(out):
    import pyarrow.parquet as pq

    return sum(pq.ParquetFile(path).metadata.num_rows for path in out.glob("*.parquet"))


if __name__ == "__main__":
    given = sys.argv[1:]
    print(json.dumps(main(given[0], *map(Path, given[1:]))))
