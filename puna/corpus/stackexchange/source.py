"""StackExchange: dumps of posts -> documents, each a question with its answers (paper section 2.1).

In:  `Posts.xml` in a folder named by its site, or the site's archive, as the dumps are published.
Out: one Document per question: title, body, then the answers by score, highest first.

    coffee.stackexchange.com.7z  ─> posts ─┬─> range 0: questions 0-49,999 and their answers ─> documents
    stackoverflow.com-Posts.7z   ─> posts ─┼─> range 0 ─> documents
                                           └─> range 1: questions 50,000-99,999 ─> documents

An answer may be anywhere after its question, in stackoverflow 100 GB later. So a first step, one task per
dump, writes the posts by range of their question's number; a second, one task per range, joins questions and
answers. Both need a few tens of MB of memory for any site. Of more sites than `sites`, the largest are kept.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from puna.corpus.clean import require_documents
from puna.corpus.document import DamagedRecord, Document, Drop
from puna.corpus.parquet import DamageList, ShardWriter
from puna.corpus.pipeline import Pipeline
from puna.corpus.stackexchange.html import text_of
from puna.corpus.stackexchange.posts import ANSWER, QUESTION, Post, read_posts
from puna.files import atomic_file
from puna.manifest import Manifest
from puna.stages.stage import Executor, Shard, plan_shards
from puna.validation import Count, Positive, strict

PATTERNS: tuple[str, ...] = ("Posts.xml", "*.7z")

PART_BYTES = 256 << 20  # a Posts.xml of twice this size or more is divided into tasks
IDS_PER_RANGE = 50_000  # about 75 MB of posts
SPILL_CHARACTERS = 16 << 20  # buffered by a task of the first step before it writes
MAX_TAGS = 20_000  # maximum nesting in a post's HTML: parsing time grows with its square

_OTHER_TABLES = re.compile(r"-(?:Badges|Comments|PostHistory|PostLinks|Tags|Users|Votes)\.7z$")
_ARCHIVE = re.compile(r"(?:-Posts)?\.7z$")
_SPILL = pa.schema(
    [
        ("question", pa.int64()),
        ("id", pa.int64()),
        ("is_answer", pa.bool_()),
        ("score", pa.int64()),
        ("title", pa.large_string()),
        ("body", pa.large_string()),
        ("tags", pa.string()),
        ("created", pa.string()),
    ]
)


@strict
@dataclass(frozen=True)
class Options:
    """Which sites and questions are kept."""

    sites: Positive = 28
    """Maximum number of sites; those with the most posts are kept."""
    min_answers: Count = 0
    """Minimum number of answers; questions with fewer are dropped."""


@dataclass(frozen=True)
class Thread:
    """A question of a site, and its answers in any order."""

    site: str
    question: Post
    answers: tuple[Post, ...]


# ---- a thread -------------------------------------------------------------------------------------


def read(path: Path, options: Options = Options()) -> Iterator[Post | DamagedRecord]:
    """Stream the posts of a dump."""
    return read_posts(path)


def clean(thread: Thread, options: Options = Options()) -> Document | Drop:
    """`Q: title, body`, then `A: answer` by score, the highest first, of equal scores the older first."""
    name = f"{thread.site}/{thread.question.id}"
    answers = sorted(thread.answers, key=lambda answer: (-answer.score, answer.id))
    if any(post.body.count("<") > MAX_TAGS for post in (thread.question, *answers)):
        return Drop("too many tags", detail=name)
    texts = [(answer, text) for answer in answers if (text := text_of(answer.body))]
    if len(texts) < options.min_answers:
        return Drop("too few answers", detail=name)
    question = "\n\n".join(
        filter(None, (" ".join(thread.question.title.split()), text_of(thread.question.body)))
    )
    if not question:
        return Drop("empty", detail=name)
    return Document(
        id=name,
        source="stackexchange",
        text="\n\n".join([f"Q: {question}", *(f"A: {text}" for _, text in texts)]),
        meta={
            "site": thread.site,
            "url": f"https://{thread.site}/q/{thread.question.id}",
            "title": thread.question.title,
            "tags": [tag for tag in re.split(r"[<>|]+", thread.question.tags) if tag],
            "created": thread.question.created,
            "score": thread.question.score,
            "answers": [{"id": answer.id, "score": answer.score} for answer, _ in texts],
        },
    )


def site_of(path: Path) -> str:
    """The site of a folder's Posts.xml or of an archive.

    `coffee.stackexchange.com.7z` is that site's, `stackoverflow.com-Posts.7z` that of stackoverflow.com.
    """
    return _ARCHIVE.sub("", path.name) if path.suffix == ".7z" else path.absolute().parent.name


# ---- the two steps --------------------------------------------------------------------------------


def pipeline(inputs: Sequence[Path], out: Path, options: Options, executor: Executor) -> Manifest:
    """Posts by range of their question, then documents. Returns the manifest of the documents.

    Raises:
        ValueError: when no document was kept, or too much of the input is damaged.
    """
    dumps = [path for path in inputs if not _OTHER_TABLES.search(path.name)]
    if not dumps:
        raise ValueError(
            "only archives of other tables were given; StackExchange needs Posts.xml or -Posts.7z"
        )
    steps = Pipeline("stackexchange", dumps, out, executor)
    held = {"source": "stackexchange", "ids_per_range": IDS_PER_RANGE}
    sizes = [(path, 0 if path.suffix == ".7z" else PART_BYTES) for path in dumps]
    planned = [shard for path, size in sizes for shard in plan_shards([path], part_bytes=size)]
    shards = [replace(shard, name=f"{place:05d}") for place, shard in enumerate(planned)]
    spilled = steps.map("posts", "read stackexchange", spill_posts, held, shards=shards, finish=_sites)
    spills = out / "steps" / "posts"
    sites: dict[str, dict[str, Any]] = spilled.details["sites"]
    largest = sorted(sites, key=lambda site: (-sites[site]["posts"], site))
    kept, left_out = largest[: options.sites], largest[options.sites :]
    ranges = [Shard(f"{site}-{number:06d}", ()) for site in sorted(kept) for number in sites[site]["ranges"]]
    files = {site: [spills / name for name in sites[site]["files"]] for site in kept}
    config = {"source": "stackexchange", "options": asdict(options)}
    join = partial(join_range, options, files, keep_dropped=executor.keep_dropped)
    finish = partial(_finish, spilled, left_out)
    return steps.documents("clean stackexchange", join, config, shards=ranges, finish=finish)


def _sites(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The results of the first step by site: number of posts, ranges of questions, files."""
    sites: dict[str, dict[str, Any]] = {}
    for record in records:
        site = sites.setdefault(record["site"], {"posts": 0, "ranges": [], "files": []})
        site["posts"] += record["counts"]["posts"]
        site["ranges"] = sorted({*site["ranges"], *record["ranges"]})
        site["files"].append(f"{record['name']}.arrow")
    return {"sites": sites}


def _finish(spilled: Manifest, left_out: list[str], records: list[dict[str, Any]]) -> dict[str, Any]:
    """Raise for a corpus without documents, and add the drops and damage of the first step."""
    require_documents("stackexchange", records)
    posts = {site: found["posts"] for site, found in spilled.details["sites"].items()}
    counts = sum((Counter(record["counts"]) for record in records), Counter())
    counts.update({reason: n for reason, n in spilled.counts.items() if reason.startswith("dropped: ")})
    return {
        "counts": dict(sorted(counts.items())),
        "damaged": spilled.damaged,
        "posts": spilled.counts["posts"],
        "sites": {site: posts[site] for site in sorted(posts) if site not in left_out},
        "sites_left_out": {site: posts[site] for site in sorted(left_out)},
    }


def spill_posts(shard: Shard, out: Path) -> dict[str, Any]:
    """The first step: one dump's questions and answers as `NAME.arrow`, by range of the question.

    The file is a sequence of Arrow record batches, each of one range; `NAME.index.json` lists the ranges.
    """
    (path,) = shard.inputs
    counts: Counter[str] = Counter()
    damaged = DamageList(out, shard.name)
    index: list[int] = []
    held: dict[int, list[dict[str, Any]]] = {}
    size = 0
    target = out / f"{shard.name}.arrow"
    with atomic_file(target) as temporary:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with (
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, _SPILL, options=options) as writer,
        ):

            def write() -> None:
                for number in sorted(held):
                    writer.write_batch(pa.RecordBatch.from_pylist(held[number], _SPILL))
                    index.append(number)
                held.clear()

            for post in damaged.take(read_posts(path, shard.span)):
                counts["posts"] += 1
                if post.kind not in (QUESTION, ANSWER):
                    counts["dropped: not a question or an answer"] += 1
                elif post.is_deleted:
                    counts["dropped: deleted"] += 1
                else:
                    row = _row(post)
                    held.setdefault(row["question"] // IDS_PER_RANGE, []).append(row)
                    size += len(post.body) + len(post.title) + 200
                    counts["kept"] += 1
                    if size >= SPILL_CHARACTERS:
                        write()
                        size = 0
            write()
    outputs = [target, out / f"{shard.name}.index.json"]
    with atomic_file(outputs[1]) as temporary:
        temporary.write_text(json.dumps(index), encoding="utf-8")
    damaged.write()
    return {
        "outputs": outputs,
        "counts": {"posts": 0, **dict(sorted(counts.items()))},
        "bad": len(damaged),
        "site": site_of(path),
        "ranges": sorted(set(index)),
    }


def _row(post: Post) -> dict[str, Any]:
    is_answer = post.kind == ANSWER
    return {
        "question": post.parent if is_answer else post.id,
        "id": post.id,
        "is_answer": is_answer,
        "score": post.score,
        "title": post.title,
        "body": post.body,
        "tags": post.tags,
        "created": post.created,
    }


def join_range(
    options: Options, files: dict[str, list[Path]], shard: Shard, out: Path, keep_dropped: bool = False
) -> dict[str, Any]:
    """The second step: the documents of one range of a site's questions, in the questions' order."""
    site, _, number = shard.name.rpartition("-")
    questions: dict[int, dict[str, Any]] = {}
    answers: dict[int, list[dict[str, Any]]] = {}
    with ShardWriter(out, shard.name, "stackexchange", keep_dropped) as writer:
        seen: set[int] = set()
        for row in _rows(files[site], int(number)):
            if row["id"] in seen:
                writer.add(Drop("repeated post", f"{site}/{row['id']}"), row)
                continue
            seen.add(row["id"])
            if row["is_answer"]:
                answers.setdefault(row["question"], []).append(row)
            else:
                questions[row["id"]] = row
        for question in sorted(questions):
            thread = Thread(site, _post(questions[question]), tuple(map(_post, answers.pop(question, ()))))
            writer.add(clean(thread, options), thread)
        for question in sorted(answers):
            for row in answers[question]:
                writer.add(Drop("answer without its question", f"{site}/{row['id']}"), row)
    return writer.result()


def _rows(files: Sequence[Path], number: int) -> Iterator[dict[str, Any]]:
    for path in files:
        index: list[int] = json.loads(path.with_name(f"{path.stem}.index.json").read_bytes())
        with path.open("rb") as raw, pa.ipc.open_file(raw) as batches:
            for place, held in enumerate(index):
                if held == number:
                    yield from batches.get_batch(place).to_pylist()


def _post(row: dict[str, Any]) -> Post:
    kind = ANSWER if row["is_answer"] else QUESTION
    parent = row["question"] if row["is_answer"] else 0
    return Post(
        row["id"], kind, parent, row["score"], row["title"], row["body"], row["tags"], row["created"], False
    )
