"""The texts of the permitted licences, by SPDX's licence list 3: lower case, no punctuation.

In:  licence_texts.txt, where `[SPDX name]` precedes each text.
Out: `TEXTS`, SPDX name -> its words, Apache-2.0 with LLVM's exception; names and years, which differ from
     project to project, are omitted.
"""

import re
from pathlib import Path

_FILE = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
TEXTS = {name: " ".join(words.split()) + " " for name, words in re.findall(r"\[(.+)\]\n([^\[]+)", _FILE)}
