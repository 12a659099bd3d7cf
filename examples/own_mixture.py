"""A mixture of your own: two sources, sampled three to one, whatever their sizes.

    python examples/own_mixture.py

The proportions decide which tokens each training step sees; the held-out loss is reported for each source.
"""

from pathlib import Path

from _data import write_documents

import puna


def main() -> None:
    for name, subjects in {
        "animals": ["The llama", "A condor"],
        "people": ["A shepherd", "My sister"],
    }.items():
        raw = write_documents(Path(f"raw/{name}.jsonl"), subjects)
        puna.clean("jsonl", raw, f"documents/{name}", source=name)

    documents = ["documents/animals", "documents/people"]
    weights = {"animals": 3.0, "people": 1.0}
    puna.train_tokenizer(documents, "tokenizer", vocab_size=320, weights=weights)
    puna.write_shards(documents, "tokenizer", "shards")
    outcome = puna.train(
        "runs/mixture",
        "shards",
        recipe="tiny",
        model={"vocab_size": 320},
        mixture={"weights": weights},
        train={"steps": 40},
    )
    for source, loss in outcome.validation["loss_by_source"].items():
        print(f"{source}: held-out loss {loss:.3f}")


if __name__ == "__main__":  # stages start processes, which import this file
    main()
