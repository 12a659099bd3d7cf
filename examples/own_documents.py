"""Documents of your own to a trained model: clean, tokenize, train, generate.

    python examples/own_documents.py

In:  notes.jsonl, one JSON object with "text" per line (written here; replace it by your own).
Out: documents/, tokenizer/, shards/, runs/notes/ and a report.
"""

from pathlib import Path

from _data import write_documents

import puna


def main() -> None:
    notes = write_documents(Path("raw/notes.jsonl"), ["The llama", "A shepherd", "My sister"])

    manifest = puna.clean("jsonl", notes, "documents/notes", source="notes")
    print(f"{manifest.counts['kept']} documents")

    puna.train_tokenizer("documents/notes", "tokenizer", vocab_size=320)
    puna.write_shards("documents/notes", "tokenizer", "shards")

    # The same call resumes an interrupted run. A real model: recipe="110m", with the steps of the recipe.
    outcome = puna.train(
        "runs/notes", "shards", recipe="tiny", model={"vocab_size": 320}, train={"steps": 60}
    )
    print(f"{outcome.state.step} steps, held-out loss {outcome.validation['loss']:.3f}")

    print(puna.load("runs/notes").generate("The llama", max_tokens=20, temperature=0))
    print(f"open {puna.report('runs/notes')}")


if __name__ == "__main__":  # stages start processes, which import this file
    main()
