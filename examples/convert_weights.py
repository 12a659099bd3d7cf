"""A trained model in the formats of Hugging Face, Meta and llama.cpp, and each of them loaded again.

    python examples/convert_weights.py

Without a change of precision the values stay bitwise identical, so every format gives the same text. GGUF
needs the extra `convert`: pip install "puna[convert]".
"""

from pathlib import Path

from _data import train_small_model

import puna


def main() -> None:
    run = train_small_model(Path("runs/small"))
    expected = puna.load(run, weights="fp32").generate("The llama", temperature=0, max_tokens=20)
    print(expected)

    for form, target in {"hf": "small-hf", "meta": "small-meta", "gguf": "small.gguf"}.items():
        manifest = puna.convert(run, target, to=form)
        text = puna.load(target, weights="fp32").generate("The llama", temperature=0, max_tokens=20)
        print(f"{target}: {manifest.bytes:,} bytes, {'the same' if text == expected else 'another'} text")


if __name__ == "__main__":  # stages start processes, which import this file
    main()
