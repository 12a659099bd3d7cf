"""The verb corpus: one for each registered source, and those that train the filters of CommonCrawl."""

from cyclopts import App

from puna.corpus.registry import source_names

corpus = App(name="corpus", help="Clean raw dumps into documents (Parquet files).")
for name, summary in source_names().items():
    corpus.command(f"puna.cli.sources:{name}", name=name, help=summary)
corpus.command("puna.cli.corpus_models:references", help="List the URLs cited by a Wikipedia dump.")
corpus.command(
    "puna.cli.corpus_models:language_model", help="Train the n-gram language model for perplexity filtering."
)
corpus.command(
    "puna.cli.corpus_models:classifier", help="Train the classifier of pages that Wikipedia would cite."
)
