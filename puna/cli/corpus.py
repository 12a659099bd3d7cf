"""The verb corpus: one for each source, and those that train what CommonCrawl is filtered with."""

from cyclopts import App

SOURCES = {
    "commoncrawl": "Web pages as CCNet cleans them: lines that are nowhere else, language, perplexity.",
    "c4": "Web pages by the rules of C4.",
    "github": "Source code under Apache, BSD and MIT licences.",
    "wikipedia": "Articles, without their markup.",
    "books": "Project Gutenberg, each book once.",
    "arxiv": "Papers, from their LaTeX.",
    "stackexchange": "Questions with their answers, the best first.",
}


app = App(name="corpus", help="Clean raw dumps into documents (Parquet).")
for name, text in SOURCES.items():
    app.command(f"puna.cli.sources:{name}", name=name, help=text)
app.command("puna.cli.corpus_models:references", help="List the URLs that a Wikipedia dump cites.")
app.command(
    "puna.cli.corpus_models:language_model", help="Train the model that CommonCrawl's perplexity is of."
)
app.command("puna.cli.corpus_models:classifier", help="Train what tells cited pages from others.")
