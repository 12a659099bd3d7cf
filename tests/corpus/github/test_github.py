"""Archives of projects become source files, if and only if their licence is permitted."""

import gzip
import io
import json
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from puna.corpus.clean import clean_source
from puna.corpus.document import DamagedRecord, Document, Drop
from puna.corpus.github.licence import is_permitted, licence_of_text, licence_of_texts
from puna.corpus.github.licence_texts import TEXTS
from puna.corpus.github.source import Options, SourceFile, clean, read
from puna.corpus.parquet import read_documents
from puna.fetch.package_index import Package, fetch_packages
from puna.stages.stage import Executor
from tests.corpus.killed import run_killed

CODE = '"""Counts llamas."""\n\n\ndef count(herd):\n    return len(herd)\n'
MIT = (
    "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy\n"
    "of this software"
)
BSD = (
    "Redistribution and use in source and binary forms, with or without\nmodification, are permitted "
    "provided that\n* Neither the name of the author"
)
GPL = "GNU GENERAL PUBLIC LICENSE Version 3, 29 June 2007"


def wheel(path: Path, files: dict[str, str | bytes], metadata: str = "License-Expression: MIT") -> Path:
    name = "-".join(path.name.split("-")[:2])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in files.items():
            archive.writestr(member, data)
        archive.writestr(
            f"{name}.dist-info/METADATA", f"Metadata-Version: 2.4\nName: herd\n{metadata}\n\nText\n"
        )
    return path


def sdist(path: Path, files: dict[str, str], top: str = "herd-1.0/") -> Path:
    with tarfile.open(path, "w:bz2" if path.suffix == ".bz2" else "w:gz") as archive:
        for member, text in files.items():
            info = tarfile.TarInfo(top + member)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def results(path: Path) -> tuple[dict[str, Document], dict[str, str], list[DamagedRecord]]:
    """Documents by path, reasons of drops by path, and what was damaged."""
    documents, drops, bad = {}, {}, []
    for record in read(path):
        if isinstance(record, DamagedRecord):
            bad.append(record)
            continue
        result = clean(record)
        if isinstance(result, Drop):
            drops[record.path] = result.reason
        else:
            documents[record.path] = result
    return documents, drops, bad


def text_of(code: str, path: str = "herd/herd.py") -> str:
    document = clean(SourceFile("herd-1.0", "MIT", path, len(code.encode()), code.encode()))
    assert isinstance(document, Document), document
    return document.text


def reason_for(data: str | bytes, path: str = "herd/herd.py") -> str:
    data = data.encode() if isinstance(data, str) else data
    drop = clean(SourceFile("herd-1.0", "MIT", path, len(data), data))
    assert isinstance(drop, Drop), drop
    return drop.reason


# ---- archives


def test_a_wheel_gives_a_document_a_source_file(tmp_path):
    path = wheel(tmp_path / "herd-1.0-py3-none-any.whl", {"herd/count.py": CODE, "herd/logo.png": b"\x89PNG"})
    documents, drops, bad = results(path)
    assert documents == {
        "herd/count.py": Document(
            "herd-1.0/herd/count.py",
            "github",
            CODE,
            {"licence": "MIT", "path": "herd/count.py", "language": "Python"},
        )
    }
    assert set(drops.values()) == {"not source code or prose"} and not bad


@pytest.mark.parametrize("name", ["herd-1.0.tar.gz", "herd-1.0.tgz", "herd-1.0.tar.bz2"])
def test_an_sdist_is_named_without_its_top_folder(tmp_path, name):
    path = sdist(tmp_path / name, {"src/count.py": CODE, "PKG-INFO": "Name: herd\nLicense: BSD\n"})
    documents, _, bad = results(path)
    assert [document.id for document in documents.values()] == ["herd-1.0/src/count.py"]
    assert documents["src/count.py"].meta["licence"] == "BSD" and not bad


def test_an_archive_without_metadata_is_judged_by_its_licence_text(tmp_path):
    path = tmp_path / "herd-main.zip"
    for licence, kept in ((MIT, 1), (BSD, 1), (GPL, 0), (MIT + "\n" + GPL, 0), ("All rights reserved.", 0)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("herd-main/count.py", CODE)
            archive.writestr("herd-main/LICENSE", licence)
        documents, drops, _ = results(path)
        assert len(documents) == kept, licence
        assert kept or set(drops.values()) == {"licence not permitted"}


def test_metadata_decides_before_the_licence_text(tmp_path):
    path = wheel(
        tmp_path / "herd-1.0-py3-none-any.whl",
        {"count.py": CODE, "herd-1.0.dist-info/licenses/LICENSE": MIT},
        "License-Expression: GPL-2.0-or-later",
    )
    documents, drops, _ = results(path)
    assert not documents and set(drops.values()) == {"licence not permitted"}
    assert not any(record.data for record in read(path) if isinstance(record, SourceFile)), "not even read"


def test_metadata_that_states_no_licence_leaves_it_to_the_text(tmp_path):
    files = {"count.py": CODE, "PKG-INFO": "Name: herd\n", "COPYING": BSD}
    documents, _, _ = results(sdist(tmp_path / "herd-1.0.tar.gz", files))
    assert documents["count.py"].meta["licence"] == "BSD-3-Clause"


def test_a_project_without_a_licence_gives_nothing(tmp_path):
    path = wheel(tmp_path / "herd-1.0-py3-none-any.whl", {"count.py": CODE}, "Summary: no licence")
    documents, drops, _ = results(path)
    assert not documents and set(drops.values()) == {"licence not permitted"}


@pytest.mark.parametrize("licence_last", [True, False])
def test_the_licence_counts_wherever_it_stands_in_the_archive(tmp_path, licence_last):
    files = {"count.py": CODE, "LICENSE": MIT}
    order = files if licence_last else dict(reversed(files.items()))
    assert set(results(sdist(tmp_path / "herd-1.0.tar.gz", order))[0]) == {"count.py"}


def test_a_licence_inside_a_vendored_folder_is_not_the_projects(tmp_path):
    path = sdist(tmp_path / "herd-1.0.tar.gz", {"count.py": CODE, "vendor/LICENSE": MIT, "vendor/x.py": CODE})
    assert not results(path)[0]


def test_vendored_licence_and_minified_files_are_dropped(tmp_path):
    path = wheel(
        tmp_path / "herd-1.0-py3-none-any.whl",
        {"herd/_vendor/x.py": CODE, "LICENSE.md": MIT, "site.min.js": "let x = 1", "licence.py": CODE},
    )
    documents, drops, _ = results(path)
    assert set(documents) == {"licence.py"}
    assert drops["herd/_vendor/x.py"] == "vendored"
    assert drops["LICENSE.md"] == "licence file"
    assert drops["site.min.js"] == "minified"


def test_a_file_over_a_megabyte_is_dropped_without_being_kept_in_memory(tmp_path):
    path = wheel(tmp_path / "herd-1.0-py3-none-any.whl", {"big.py": "x = 1\n" * 200_000, "small.py": CODE})
    records = {record.path: record for record in read(path) if isinstance(record, SourceFile)}
    assert records["big.py"].data == b""
    assert clean(records["big.py"]) == Drop("larger than 1 MB", detail="big.py")
    assert isinstance(clean(records["small.py"]), Document)


def test_a_bomb_is_never_in_memory(tmp_path):
    path = tmp_path / "herd-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in (
            ("LICENSE", MIT.encode()),
            ("bomb.py", bytes(60_000_000)),
            ("a.py", CODE.encode()),
        ):
            info = tarfile.TarInfo(f"herd-1.0/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    tracemalloc.start()
    documents, drops, _ = results(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert set(documents) == {"a.py"} and drops["bomb.py"] == "larger than 1 MB"
    assert peak < 6_000_000


def test_a_file_that_is_no_archive_is_bad_input_and_not_an_exception(tmp_path):
    for name in ("a-1-py3-none-any.whl", "a.zip", "a.tar.gz", "a.tgz", "a.tar.bz2"):
        path = tmp_path / name
        for data in (b"", b"not an archive", b"PK\x03\x04" + bytes(100), gzip.compress(b"x" * 2000)):
            path.write_bytes(data)
            records = list(read(path))
            assert len(records) == 1 and isinstance(records[0], DamagedRecord), (name, data[:8], records)


def test_a_cut_archive_keeps_the_files_before_the_cut(tmp_path):
    files = {"LICENSE": MIT} | {
        f"m{number}.py": f"{CODE}# {'%032x' % (number**29)}\n" * 40 for number in range(40)
    }
    for suffix in ("tar.gz", "tar.bz2"):
        path = sdist(tmp_path / f"herd-1.0.{suffix}", files)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * 0.7)])
        documents, _, bad = results(path)
        expected = [name for name in files if name in documents]
        assert expected == list(files)[1 : len(expected) + 1]  # a beginning of the list, in order
        assert (len(expected) > 5 or suffix == "tar.bz2") and len(expected) < 40
        assert len(bad) == 1 and bad[0].file == str(path)


def test_a_damaged_header_inside_a_tar_is_not_taken_for_its_end(tmp_path):
    path = sdist(tmp_path / "herd-1.0.tar.gz", {"LICENSE": MIT, "a.py": CODE, "b.py": CODE})
    data = bytearray(gzip.decompress(path.read_bytes()))
    offset = data.index(b"herd-1.0/b.py")
    data[offset : offset + 4] = b"DERH"  # the header's checksum no longer fits
    path.write_bytes(gzip.compress(bytes(data)))
    documents, _, bad = results(path)
    assert set(documents) == {"a.py"} and len(bad) == 1


def test_a_wrong_checksum_at_the_end_of_a_tar_is_named(tmp_path):
    path = sdist(tmp_path / "herd-1.0.tar.gz", {"LICENSE": MIT, "a.py": CODE})
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # gzip's CRC of the whole
    path.write_bytes(data)
    documents, _, bad = results(path)
    assert set(documents) == {"a.py"} and len(bad) == 1


def test_a_damaged_member_of_a_zip_costs_that_member_alone(tmp_path):
    path = tmp_path / "herd-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:  # stored, so that a byte can be found and changed
        archive.writestr("a.py", CODE + "# first\n")
        archive.writestr("b.py", CODE + "# second\n")
        archive.writestr("herd-1.0.dist-info/METADATA", "License-Expression: MIT\n")
    path.write_bytes(path.read_bytes().replace(b"# first", b"# fIrst"))
    documents, _, bad = results(path)
    assert set(documents) == {"b.py"}
    assert [item.file for item in bad] == [f"{path}!a.py"]


def test_links_in_an_archive_are_not_followed(tmp_path):
    path = tmp_path / "herd-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, target in (("herd-1.0/up.py", "/etc/passwd"), ("herd-1.0/down.py", "../../x.py")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
        info = tarfile.TarInfo("herd-1.0/LICENSE")
        info.size = len(MIT)
        archive.addfile(info, io.BytesIO(MIT.encode()))
    assert [record.path for record in read(path)] == ["LICENSE"]


# ---- filters


def test_each_filter_has_its_own_reason():
    assert reason_for(CODE.encode() + b"\0") == "binary"
    assert reason_for("café".encode("latin-1")) == "binary"
    assert reason_for("") == reason_for("\n\n") == "empty"
    assert reason_for("x = '" + "a" * 1000 + "'\n") == "longest line too long"
    assert reason_for(("x" * 150 + "\n") * 20) == "mean line too long"
    assert reason_for("+-*/ " * 15 + "x\n") == "few letters or digits"
    assert reason_for("# Generated by protoc. DO NOT EDIT!\n" + CODE) == "generated"
    assert reason_for("// Code generated by stringer; DO NOT EDIT.\nfunc x() {}\n", "x.go") == "generated"
    assert reason_for("abc\n", "notes.dat") == "not source code or prose"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("a.go", "//go:build a\n\n/*\n" + "Copyright\n" * 14 + "*/\n\n// Code generated by x. DO NOT EDIT\n"),
        ("a.js", "/* parser generated by jison 0.4.18 */\nlet herd = 1\n"),
        ("A.java", "/* The following code was generated by JFlex 1.4.3 on 5/5/14 */\nclass A {}\n"),
        ("a.c", "/* A Bison parser, made by GNU Bison 3.0.4.  */\nint herd;\n"),
        ("a.py", "# Created by: PyQt5\n#\n# WARNING! All changes made in this file will be lost!\n\nx = 1\n"),
        ("a.py", '"""Sizes.\n\nThis code generated by bin/update.py on 2023-11-07.\n"""\nHERD = (1, 2, 3)\n'),
        ("a.html", '<html>\n<meta name="generator" content="Doxygen 1.8"/>\n<p>Herd of llamas</p>\n'),
        ("a.html", '<html>\n<script src="_static/documentation_options.js"></script>\n<p>Herds</p>\n'),
    ],
)  # fmt: skip
def test_files_that_a_tool_wrote_are_dropped(path, code):
    assert reason_for(code, path) == "generated"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("a.go", '// Package gen begins files with "Code generated by gen. DO NOT EDIT."\npackage gen\n'),
        ("conf.py", "# Not all possible values are present in this\n# autogenerated file.\n\nherd = 1\n"),
        ("a.html", '<html>\n<meta name="generator" content="FrontPage 4.0">\n<p>Herd of llamas</p>\n'),
    ],
)
def test_files_that_only_mention_generated_ones_are_kept(path, code):
    assert text_of(code, path) == code


def test_lines_of_a_thousand_characters_are_kept_and_longer_are_not():
    assert text_of("x = 1\n" * 20 + "y" * 1000 + "\n")
    assert reason_for("x = 1\n" * 20 + "y" * 1001 + "\n") == "longest line too long"


def test_code_that_only_speaks_of_generating_is_kept():
    code = '"""Graphs generated by random walks. Do not edit lightly."""\nx = 1\n'
    assert text_of(code) == code


def test_windows_line_ends_and_a_byte_order_mark_are_normalised():
    assert text_of("\ufeff" + CODE.replace("\n", "\r\n")) == CODE


# ---- licence headers

HEADER = "# Copyright 2020 The Herders\n# Licensed under the Apache License, Version 2.0\n"
C_HEADER = "/*\n * Copyright (c) 2020 The Herders\n * SPDX-License-Identifier: MIT\n */\n"


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        ("a.py", HEADER + "\n" + CODE, CODE),
        ("a.py", "#!/usr/bin/env python3\n# -*- coding: utf-8 -*-\n" + HEADER + CODE, None),
        ("a.py", HEADER + "# -*- coding: latin-1 -*-\n" + CODE, "# -*- coding: latin-1 -*-\n" + CODE),
        (
            "a.py",
            HEADER + "\n# Why llamas are counted twice.\n" + CODE,
            "# Why llamas are counted twice.\n" + CODE,
        ),
        ("a.py", "# Counting llamas.\n\n" + HEADER + CODE, "# Counting llamas.\n\n" + CODE),
        (
            "a.py",
            '"""Counts llamas."""\n\n# License: BSD 3 clause\n\nx = 1\n',
            '"""Counts llamas."""\n\nx = 1\n',
        ),
        (
            "a.py",
            HEADER + "\n# (1, 1, 2, 'dev', 0) => 1.1.2.dev0\n\nx = 1\n",
            "# (1, 1, 2, 'dev', 0) => 1.1.2.dev0\n\nx = 1\n",
        ),
        ("a.go", "//go:build linux\n\n// Copyright 2020\n\npackage x\n", "//go:build linux\n\npackage x\n"),
        ("a.go", "// Counts.\n\n// mark writes the MIT license header.\nfunc mark() {}\n", None),
        ("a.js", "'use strict';\n\n/*! Copyright 2020 */\nlet herd = 1\n", "'use strict';\nlet herd = 1\n"),
        ("a.h", "#pragma once\n/* Copyright 2020 */\nint herd;\n", "#pragma once\nint herd;\n"),
        (
            "a.py",
            "# Copyright 2020\n\n# Neither the name Herd nor the names of its contributors may be used to\n"
            "# endorse or promote products derived from this software without specific permission.\n\n"
            + CODE,
            CODE,
        ),
        ("a.c", C_HEADER + "\n#include <stdio.h>\nint x;\n", "#include <stdio.h>\nint x;\n"),
        ("a.c", "#include <stdio.h>\nint x; // copyright\n", "#include <stdio.h>\nint x; // copyright\n"),
        ("a.c", "/* Copyright 2020 */ int x;\n", "/* Copyright 2020 */ int x;\n"),
        (
            "a.c",
            "/* Copyright 2020, and never closed\nint x;\n",
            "/* Copyright 2020, and never closed\nint x;\n",
        ),
        ("a.go", "// Copyright 2020\n\n//go:build linux\n\npackage x\n", "//go:build linux\n\npackage x\n"),
        ("a.rs", "//! Parses licences.\n//! Copyright of none.\nfn x() {}\n", None),
        ("a.java", "/**\n * Counts herds.\n * @license MIT\n */\nclass A {}\n", None),
        ("a.js", "/**\n * @license MIT, copyright 2020\n */\nlet herd = 1\n", "let herd = 1\n"),
        ("a.md", "# Licence of llamas\n\nText about copyright.\n", None),
        ("a.md", "<!-- Copyright 2020 -->\n# Llamas\n", "# Llamas\n"),
        ("a.html", "<!doctype html>\n<!-- (c) 2020 -->\n<p>Herd</p>\n", "<!doctype html>\n<p>Herd</p>\n"),
        ("a.sql", "-- Copyright 2020\nSELECT 1 FROM herd;\n", "SELECT 1 FROM herd;\n"),
        ("a.sh", "#!/bin/sh\n# Copyright 2020\n\nset -e\necho llamas\n", "#!/bin/sh\nset -e\necho llamas\n"),
        ("a.el", ";;; herd.el --- Herds\n\n(provide 'herd)\n", None),
        ("a.el", ";; Copyright (C) 2020 Ana\n;; License: MIT\n\n(provide 'herd)\n", "(provide 'herd)\n"),
        ("a.f", "C Copyright 2020\nC MIT licence\n      call herd(x)\n", "      call herd(x)\n"),
        ("a.f90", "! Copyright 2020\n\n! Counts herds.\ncall herd(x)\n", "! Counts herds.\ncall herd(x)\n"),
        ("a.f", "      call copyright(x)\n", None),
        ("a.hs", "{- Copyright 2020 -}\nmodule Herd where\n", "module Herd where\n"),
        (
            "a.hs",
            "{-# LANGUAGE GADTs #-}\n-- Copyright 2020\nmodule Herd where\n",
            "{-# LANGUAGE GADTs #-}\nmodule Herd where\n",
        ),
        ("a.lua", "--[[ Copyright\n2020 ]]\nreturn herd\n", "return herd\n"),
        ("a.ml", "(* Copyright 2020 *)\nlet herd = 1\n", "let herd = 1\n"),
        ("a.php", "<?php\n/* Copyright 2020 */\necho $herd;\n", "<?php\necho $herd;\n"),
        ("a.ps1", "<# Copyright 2020 #>\nGet-Herd\n", "Get-Herd\n"),
        ("a.css", "/*! herd v1 | MIT License */\nbody { color: red }\n", None),
        ("a.py", '"""Counts herds.\n\nCopyright 2020.\n"""\n\nx = 1\n', None),
        ("a.rst", ".. Copyright 2020\n   Ada\n\nHerds\n=====\n\nText here\n", "Herds\n=====\n\nText here\n"),
        ("a.rst", ".. note:: Copyright is dull.\n\n.. _herds:\n\nHerds\n=====\n\nText here\n", None),
        ("a.py", "# Returns the license of the driver; see the license server.\nx = 1\n", None),
        ("a.c", "/* Finds copyright notices in pages, licensed by states or not. */\nint x;\n", None),
        ("a.py", '# Placed in the public domain, provided "as is".\n\nx = 1\n', "x = 1\n"),
    ],
)
def test_only_leading_comments_that_speak_of_copyright_or_licence_go(path, before, after):
    if after is None and before.startswith("#!"):
        after = before.replace(HEADER, "")
    assert text_of(before, path) == (before if after is None else after)


def test_the_filters_judge_what_is_kept_and_not_the_licence_header():
    assert text_of("# Copyright " + "x" * 2000 + "\n" + CODE) == CODE


def test_a_file_that_is_only_a_licence_header_is_empty():
    assert reason_for(HEADER) == "empty"


# ---- licences that metadata states


@pytest.mark.parametrize(
    ("metadata", "permitted"),
    [
        ("License-Expression: MIT", True),
        ("License-Expression: Apache-2.0 OR GPL-3.0-only", True),
        ("License-Expression: MIT AND (Apache-2.0 OR BSD-2-Clause)", True),
        ("License-Expression: Apache-2.0 WITH LLVM-exception", True),
        ("License-Expression: MIT AND LGPL-2.1-only", False),
        ("License-Expression: GPL-3.0-only OR MIT AND GPL-2.0-only", False),
        ("License-Expression: (MIT", False),
        ("License-Expression: MIT OR", False),
        ("License-Expression: MIT GPL-2.0-only", False),
        ("License-Expression: MIT WITH Commons-Clause", False),
        ("License-Expression: BSD-Protection", False),
        ("License-Expression: MIT\nClassifier: License :: OSI Approved :: GNU GPL", True),
        ("License: MIT License", True),
        ("License: Apache License, Version 2.0", True),
        ("License: 3-Clause BSD License", True),
        ("License: MIT with Commons Clause", False),
        ("License: LGPL", False),
        ("License: MIT\nClassifier: License :: OSI Approved :: GNU General Public License (GPL)", False),
        ("Classifier: License :: OSI Approved :: BSD License", True),
        ("Classifier: License :: OSI Approved :: Apache Software License", True),
        ("License: UNKNOWN\nClassifier: License :: OSI Approved :: MIT License", True),
        ("Classifier: License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)", False),
        ("Classifier: License :: Other/Proprietary License", False),
        ("License: " + MIT.replace("\n", "\n        "), True),
        ("License: " + GPL + "\n        of the Free Software Foundation", False),
    ],
)
def test_metadata_permits_only_what_all_of_it_permits(tmp_path, metadata, permitted):
    path = wheel(tmp_path / "herd-1.0-py3-none-any.whl", {"count.py": CODE}, metadata)
    documents, drops, bad = results(path)
    assert bool(documents) == permitted, drops
    assert not bad


# ---- other archives, exports, folders


def test_a_zip_without_its_directory_is_damaged_as_a_whole(tmp_path):
    path = tmp_path / "herd-1.0.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in {"LICENSE": MIT, "a.py": CODE}.items():
            archive.writestr(f"herd-1.0/{name}", text)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"PK\x01\x02") + 10])
    documents, _, (bad,) = results(path)
    assert not documents and bad.file == str(path) and "damaged" in bad.reason


def test_a_folder_with_another_licence_gives_nothing(tmp_path):
    files = {
        "LICENSE": MIT,
        "a.py": CODE,
        "lib/COPYING": GPL,
        "lib/deep/b.py": CODE,
        "doc/license.rst": "See LICENSE.",
        "doc/d.py": CODE,
        "x/LICENSE": BSD,
        "x/c.py": CODE,
    }
    documents, drops, _ = results(sdist(tmp_path / "herd-1.0.tar.gz", files))
    assert set(documents) == {"a.py", "x/c.py", "doc/d.py"}
    assert drops["lib/deep/b.py"] == "licence not permitted"
    # Nor does a permitted folder help in a project that is not.
    documents, _, _ = results(sdist(tmp_path / "b-1.0.tar.gz", {**files, "LICENSE": GPL}))
    assert not documents


def test_unpacked_projects_are_read_as_their_archives_are(tmp_path):
    raw = tmp_path / "raw"
    files = {
        "herd/LICENSE": MIT,
        "herd/.git/config.py": CODE,
        "herd/src/a.py": CODE + "# a\n",
        "herd/logo.png": "x",
        "herd/data/x.zip": "part of the project",
        "herd/nested/.git/HEAD": "ref",
        "herd/nested/COPYING": GPL,
        "herd/nested/b.py": CODE + "# b\n",
        "none/c.py": CODE + "# c\n",
        "gpl/COPYING": GPL,
        "gpl/d.py": CODE + "# d\n",
    }
    for name, text in files.items():
        path = raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    wheel(raw / "flock-1.0-py3-none-any.whl", {"e.py": CODE + "# e\n"})
    manifest = clean_source("github", [raw], tmp_path / "out", executor=Executor(workers=1))
    assert set(kept(tmp_path / "out")) == {"herd/src/a.py", "flock-1.0/e.py"}
    assert manifest.counts["dropped: licence not permitted"] >= 3


def export(path: Path, records: list[dict]) -> Path:
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["export.json", "export-000000000000.json.gz", "export.jsonl"])
@pytest.mark.parametrize(
    ("repo", "path", "licence"),
    [
        ("repo_name", "path", "license"),
        ("sample_repo_name", "sample_path", "license"),
        ("max_stars_repo_name", "max_stars_repo_path", "max_stars_repo_licenses"),
    ],
)
def test_bigquery_exports_are_read_line_by_line(tmp_path, name, repo, path, licence):
    records = [
        {repo: "ana/herd", path: "src/a.py", licence: "mit", "content": CODE, "size": str(len(CODE))},
        {repo: "ana/herd", path: "b.py", licence: ["apache-2.0"], "content": CODE + "# b\n"},
        {repo: "ana/gpl", path: "c.py", licence: "gpl-3.0", "content": CODE},
        {repo: "ana/none", path: "d.py", "content": CODE},
        {repo: "ana/herd", path: "e.py", licence: "mit", "binary": True, "size": "70"},
        {repo: "ana/herd", path: "f.py", licence: "mit", "size": "2000000"},
    ]
    file = export(tmp_path / name, records)
    documents, drops, bad = results(file)
    assert {path: document.id for path, document in documents.items()} == {
        "src/a.py": "ana/herd/src/a.py",
        "b.py": "ana/herd/b.py",
    }
    refused = "licence not permitted"
    assert drops == {"c.py": refused, "d.py": refused, "e.py": "binary", "f.py": "larger than 1 MB"}
    assert not bad


def test_an_export_with_other_fields_is_an_error_that_names_them(tmp_path):
    file = export(
        tmp_path / "x.json", [{"repo_name": "a/b", "path": "c.py", "license": "mit", "body": "x = 1"}]
    )
    with pytest.raises(ValueError, match=r"x\.json: .* has no content, but repo_name, path, license, body;"):
        list(read(file))
    file = export(tmp_path / "y.json", [{"url": "a/b", "path": "c.py"}])
    with pytest.raises(ValueError, match="has no repo_name"):
        list(read(file))


def test_damaged_lines_and_cuts_of_an_export_are_named(tmp_path):
    record = {"repo_name": "a/b", "path": "c.py", "license": "mit", "content": CODE}
    lines = [json.dumps({**record, "path": f"{n}.py", "content": f"{CODE}# {n**9}\n"}) for n in range(400)]
    lines[3] = lines[3][:-9]
    lines[5] = '"a string"'
    plain = "\n".join(lines).encode()
    path = tmp_path / "x.json"
    path.write_bytes(plain)
    documents, _, bad = results(path)
    assert len(documents) == 398
    assert [
        plain[item.offset :].startswith(lines[n].encode()) for item, n in zip(bad, (3, 5), strict=True)
    ] == [True] * 2
    packed = tmp_path / "x.json.gz"
    packed.write_bytes(gzip.compress(plain)[:-3000])
    cut, _, bad = results(packed)
    assert 5 < len(cut) < 398 and len(bad) == 3 and "cut" in bad[-1].reason


def test_a_line_of_any_length_is_never_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("puna.corpus.json_lines.MAX_LINE_BYTES", 1 << 16)
    record = {"repo_name": "a/b", "path": "c.py", "license": "mit", "content": CODE}
    path = tmp_path / "x.json"
    path.write_text(
        f"{json.dumps({**record, 'content': 'x' * 200_000})}\n{json.dumps(record)}\n", encoding="utf-8"
    )
    documents, _, bad = results(path)
    assert set(documents) == {"c.py"}
    assert [(item.offset, "skipped" in item.reason) for item in bad] == [(0, True)]


# ---- each content once


def kept(out: Path) -> dict[str, str]:
    return {
        document.id: document.text
        for path in sorted(out.glob("0*.parquet"))
        for document in read_documents(path)
    }


@pytest.fixture
def forks(tmp_path) -> Path:
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(6):
        own = {
            f"own{number}.py": f"{CODE}# {number}\n",
            "shared.py": CODE,
            "LICENSE": MIT,
            f"copy{number}.py": CODE,
        }
        sdist(raw / f"herd-{number}.tar.gz", own, f"herd-{number}/")
    sdist(raw / "gpl-1.tar.gz", {"only.py": CODE, "LICENSE": GPL}, "gpl-1/")
    return raw


def test_a_content_is_kept_once_whatever_the_order_and_the_shards(forks, tmp_path, monkeypatch):
    manifest = clean_source("github", [forks], tmp_path / "one", executor=Executor(workers=1))
    assert manifest.counts["kept"] == 7 and manifest.counts["dropped: duplicate"] == 11
    monkeypatch.setattr("puna.stages.stage.plan_shards.__defaults__", (1,))
    files = sorted(forks.iterdir(), reverse=True)
    again = clean_source("github", files, tmp_path / "many", executor=Executor(workers=2))
    assert len(list((tmp_path / "many").glob("0*.parquet"))) == 7
    assert kept(tmp_path / "one") == kept(tmp_path / "many") and again.counts == manifest.counts
    ids = set(kept(tmp_path / "one"))
    assert {f"herd-{number}/own{number}.py" for number in range(6)} < ids and "gpl-1/only.py" not in ids


def test_the_digest_is_of_the_original_and_not_of_the_cleaned(tmp_path):
    files = {"LICENSE": MIT, "a.py": HEADER + CODE, "b.py": CODE, "c.py": HEADER + CODE}
    sdist(tmp_path / "herd-1.0.tar.gz", files)
    manifest = clean_source(
        "github", [tmp_path / "herd-1.0.tar.gz"], tmp_path / "out", executor=Executor(workers=1)
    )
    assert manifest.counts["kept"] == 2 and manifest.counts["dropped: duplicate"] == 1
    whole = clean_source(
        "github",
        [tmp_path / "herd-1.0.tar.gz"],
        tmp_path / "all",
        Options(deduplicate=False),
        Executor(workers=1),
    )
    assert whole.counts["kept"] == 3


def test_damage_is_counted_once_though_files_are_read_twice(forks, tmp_path):
    path = forks / "herd-3.tar.gz"
    path.write_bytes(path.read_bytes()[:-12])
    manifest = clean_source("github", [forks], tmp_path / "out", executor=Executor(workers=1, max_bad=0.5))
    assert manifest.damaged == 1


@pytest.mark.parametrize("step", ["duplicates", "."])
def test_a_run_that_is_killed_in_any_step_ends_with_the_same_documents(forks, tmp_path, step):
    out = tmp_path / "out"
    run_killed("github", forks, out, step)
    clean_source("github", [forks], out, executor=Executor(workers=1))
    clean_source("github", [forks], tmp_path / "undisturbed", executor=Executor(workers=1))
    assert (out / "00000.parquet").read_bytes() == (tmp_path / "undisturbed" / "00000.parquet").read_bytes()


def test_memory_does_not_grow_with_the_number_of_files(tmp_path):
    peaks = []
    for factor in (1, 8):
        text = {f"m{n}.py": f"{CODE}# {n}\n" * 200 for n in range(16 * factor)}
        path = sdist(tmp_path / f"herd-{factor}.tar.gz", {"LICENSE": MIT, **text})
        tried = []
        for _ in range(2):  # threads that earlier tests left behind allocate as well, now and then
            tracemalloc.start()
            assert sum(isinstance(clean(record), Document) for record in read(path)) == 16 * factor
            tried.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        peaks.append(min(tried))
    assert peaks[1] < 1.3 * peaks[0]


# ---- real projects


def _sdist(project: str, version: str, sha256: str) -> Package:
    return Package(project, version, f"{project}-{version}.tar.gz", sha256)


REAL = {
    "gpl": _sdist("Unidecode", "1.4.0", "ce35985008338b676573023acc382d62c264f307c8f7963733405add37ea2b23"),
    "lgpl": _sdist("paramiko", "5.1.0", "239b5f9b2a53006cd54f83cf8495ee742083708ead947882c8dd2786de79f39b"),
    "gpl, c": _sdist(
        "mysqlclient", "2.3.1", "c07e1b83b530fd6c5888259f36afad1980d21fcb33ba97384650dd23c8f73ea8"
    ),
    "bsd, c": _sdist("psutil", "7.2.2", "0746f5f8d406af344fd547f1c8daa5f5c33dbc293bb8d6a16d80b4bb88f59372"),
    "bsd": _sdist("markupsafe", "3.0.4", "2e9ad7dd851bf45fab9f75cbff4cb493fee9979e8d8c7c9c3ee119022518edd6"),
    "mit": _sdist("pyyaml", "6.0.3", "d76623373421df22fb4cf8817020cbb7ef15c725b9d5e45f17e189bfc384190f"),
}


@pytest.mark.network
@pytest.mark.parametrize("kind", REAL)
def test_real_projects_give_what_their_licence_permits(tmp_path, kind):
    (path,) = fetch_packages([REAL[kind]], tmp_path)
    documents, drops, bad = results(path)
    assert not bad
    if "gpl" in kind:
        assert not documents and set(drops.values()) == {"licence not permitted"}
        return
    assert len(documents) > 10
    files = {
        record.path: record.data.decode()
        for record in read(path)
        if isinstance(record, SourceFile) and record.data
    }
    for name, document in documents.items():
        original, text = files[name], document.text
        assert original.startswith("#!") <= text.startswith("#!"), name
        assert text.count("#include") == original.count("#include"), name
        if name.endswith(".md"):
            assert original.split("\n# ")[0][:20] in text, name
        head = "\n".join(text.splitlines()[:3]).lower()
        assert "copyright (c)" not in head or name.endswith((".rst", ".md")), name


# ---- licences by what the text is


PERMITTED_TEXT = f"The MIT License (MIT)\n\nCopyright (c) 2020 Ana Quispe\n\n{TEXTS['MIT']}\n"


@pytest.mark.parametrize("name", sorted(name for name in TEXTS if "exception" not in name))
def test_the_text_of_every_permitted_licence_is_known(name):
    words = TEXTS[name]
    for text in (words, f"The herd, by Ana Quispe and others\n\nCopyright 2020 Ana\n{words}"):
        found = licence_of_text(text)
        assert found is not None and is_permitted(found)


@pytest.mark.parametrize(
    "more",
    [
        "In addition, the Software may not be sold.",
        "The Software shall be used for Good, not Evil.",
        "For non-commercial use only.",
        "This program is free software, released under the GPLv3 (see gpl-3.0.txt).",
        "Permission to use, copy, modify, and/or distribute this software for any purpose with or without "
        "fee is hereby granted, provided that the above copyright notice appear in all copies.",
        "Commons Clause: the grant of rights will not include the right to Sell the Software.",
        "Restrictions: by making use of the Software for military purposes, you make a bunny unhappy.",
        "If users interact with it remotely through a computer network, it shall be offered to them.",
        "Copyright (c) 2021 Ana Quispe, licensed under the GPL.",
        "(c) 2021 Ana. Not for commercial use.",
    ],
)
def test_a_restriction_or_another_licence_beside_a_permitted_one_fails(more):
    assert licence_of_text(PERMITTED_TEXT) == "MIT"
    assert licence_of_text(f"{PERMITTED_TEXT}\n{more}\n") is None
    assert licence_of_text(f"{more}\n\n{PERMITTED_TEXT}") is None


def test_usual_words_beside_a_permitted_licence_pass():
    old_bsd = BSD.replace("binary forms", "binary forms of the software as well as documentation")
    assert old_bsd != BSD and licence_of_text(f"Some rights reserved.\n{old_bsd}") == licence_of_text(BSD)
    for more in (
        "Copyright 2011 Mozilla Foundation",
        "This is a fork of herd by Ana, extended and distributed under the terms of the MIT license above.",
        "Except when otherwise stated (look for LICENSE files in directories or information at the "
        "beginning of each file) all software and documentation is licensed as follows:",
    ):
        assert licence_of_text(f"{more}\n\n{PERMITTED_TEXT}") == "MIT"


def test_a_file_that_points_to_the_licence_files_is_no_licence():
    pointer = (
        "This software is made available under the terms of *either* of the licenses\nfound in "
        "LICENSE.APACHE2 or LICENSE.MIT. Contributions to herd are made\nunder the terms of *both* "
        "these licenses.\n"
    )
    assert licence_of_texts([pointer, PERMITTED_TEXT]) == "MIT"
    assert licence_of_texts([pointer, GPL]) == licence_of_texts([pointer]) == "unrecognised"


def test_apache_is_known_without_its_title_and_by_its_short_notice():
    words = TEXTS["Apache-2.0"]
    assert licence_of_text(words[words.index("terms and conditions for use") :]) == "Apache-2.0"
    notice = words[words.index("licensed under the apache license") :]
    assert licence_of_text(notice) == "Apache-2.0"


@pytest.mark.parametrize(
    ("files", "kept"),
    [
        ({"MIT-LICENSE": MIT}, True),
        ({"LICENSE-MIT.txt": MIT}, True),
        ({"LICENSE": MIT, "GPL.txt": GPL}, False),
        ({"LICENSE": MIT, "src/GPL.txt": GPL}, False),
        ({"pyproject.toml": '[project]\nname = "herd"\nlicense = "MIT"\n'}, True),
        ({"pyproject.toml": '[project]\nlicense = {text = "GPL-3.0-only"}\n'}, False),
        ({"pyproject.toml": '[project]\nlicense = "MIT"\n', "LICENSE": GPL}, False),
        ({"pyproject.toml": "[project"}, False),
        ({"pyproject.toml": '[project]\nclassifiers = ["License :: OSI Approved :: MIT License"]\n'}, True),
        ({"pyproject.toml": '[tool.poetry]\nlicense = "MIT"\n'}, True),
        ({"setup.cfg": "[metadata]\nlicense = BSD 3-Clause License\n"}, True),
        ({"setup.cfg": "[metadata]\nclassifiers =\n  License :: OSI Approved :: GNU Affero\n"}, False),
        ({"package.json": '{"license": "MIT"}'}, True),
        ({"package.json": '{"licenses": [{"type": "MIT"}, {"type": "GPL-2.0"}]}'}, False),
        ({"package.json": '{"license": "SEE LICENSE IN LICENSE"}', "LICENSE": MIT}, True),
        ({"package.json": '{"license": "GPL-3.0"}', "LICENSE": MIT}, False),
        ({"package.json": "[1, "}, False),
        ({"Cargo.toml": '[package]\nlicense = "MIT/Apache-2.0"\n'}, True),
        ({"Cargo.toml": '[package]\nlicense = "MPL-2.0"\n', "LICENSE": MIT}, False),
        ({"LICENSES/MIT.txt": MIT}, True),
        ({"LICENSES/MIT.txt": MIT, "LICENSES/GPL-3.0-only.txt": GPL}, False),
        ({"docs/licenses/MIT.txt": MIT}, False),
    ],
)
def test_a_project_s_licence_is_found_by_every_usual_name(tmp_path, files, kept):
    documents, _, _ = results(sdist(tmp_path / "herd-1.0.tar.gz", {**files, "src/a.py": CODE}))
    assert ("src/a.py" in documents) == kept


def code_of(path: str, data: bytes) -> str | None:
    result = clean(SourceFile("herd-1.0", "MIT", path, len(data), data))
    return result.text if isinstance(result, Document) else None


@pytest.mark.parametrize(
    ("path", "data", "kept"),
    [
        ("a.py", "# -*- coding: latin-1 -*-\nx = 'für'\n".encode("latin-1"), True),
        ("a.py", "#!/usr/bin/python\n# vim: set fileencoding=cp1251 :\nx = 'лама'\n".encode("cp1251"), True),
        ("a.rb", "# encoding: iso-8859-15\nx = '€'\n".encode("iso-8859-15"), True),
        ("a.cs", "class Herd { int für; }\n".encode("utf-16"), True),
        ("a.html", "<html><meta charset='windows-1252'><p>Die Fähre fährt</p>\n".encode("cp1252"), True),
        ("a.cs", b"\xfe\xff" + "class Herd { }\n".encode("utf-16-be"), True),
        ("a.py", b"# coding: rot13\nx = '\xff'\n", False),
        ("a.py", b"# coding: no-such\nx = '\xff'\n", False),
        ("a.py", b"x = '\xff'\n", False),
        ("a.py", b"x = 1\0\n", False),
    ],
)
def test_a_file_is_read_in_the_encoding_that_it_names(path, data, kept):
    assert (code_of(path, data) is not None) == kept


@pytest.mark.parametrize(
    ("path", "head", "kept"),
    [
        ("a.md", "# Reports generated by the nightly job", True),
        ("a.py", "# Do not edit /etc/hosts by hand: this script writes it.", True),
        ("a.py", "# The table is generated by the ferry's own clerk.", True),
        ("a.go", "// Code generated by protoc-gen-go. DO NOT EDIT.", False),
        ("a.py", "# This file is automatically generated, do not edit", False),
        ("a.py", "# Generated by Django 4.2 on 2024-01-01", False),
        ("a.java", "// @generated", False),
        ("a.ts", "// NOTE: This class is auto generated by the swagger code generator program.", False),
        ("a.c", "/* A lexical scanner generated by flex */", False),
        ("a.py", "# ### commands auto generated by Alembic - please adjust! ###", True),
        ("a.js", "/* AUTO-GENERATED FILE. DO NOT MODIFY. */", False),
    ],
)
def test_only_what_says_so_of_itself_is_generated(path, head, kept):
    assert (code_of(path, f"{head}\n{CODE}".encode()) is not None) == kept


@pytest.mark.parametrize(
    "folder", ["bower_components", "third-party", "3rdparty", "Godeps", "Pods", "Carthage"]
)
def test_folders_of_other_people_s_code_are_left_out(folder):
    assert code_of(f"src/{folder}/a.py", CODE.encode()) is None


def test_a_licence_in_a_docstring_goes_and_a_comment_about_licences_stays():
    licence = f'"""\nCopyright 2020 Ana\n\n{MIT.split(chr(10), 2)[2]}\n"""\n\n'
    assert code_of("a.py", (licence + CODE).encode()) == CODE
    described = '"""Weighs loads.\n\nCopyright 2020 Ana. Licensed under the MIT License.\n"""\n'
    for comment in (
        "# Checks the number of a driver's licence.\n",
        '"""Counts licences of herds."""\n',
        described,
    ):
        assert code_of("a.py", (comment + CODE).encode()) == comment + CODE
