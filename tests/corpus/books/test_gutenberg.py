"""What Gutenberg put around its books since 1971 goes, and never the book."""

import pytest

from puna.corpus.books.source import Book, Options, clean
from puna.corpus.document import Document

START = "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\n"
END = "\n\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\n"
SMALL_PRINT = (
    "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\n"
    "They tell us you might sue us if there is something wrong with\nyour copy of this etext.\n\n"
    "INDEMNITY\nYou will indemnify and hold the Project harmless.\n\n"
    "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n"
)
HEADER_1998 = (
    "**The Project Gutenberg Etext of Verses, by A. Poet**\n#1 in our series by A. Poet\n\n\n"
    "Copyright laws are changing all over the world, be sure to check\nthe laws for your country!!\n\n"
    "**Welcome To The World of Free Plain Vanilla Electronic Texts**\n\n"
    "*These Etexts Prepared By Hundreds of Volunteers and Donations*\n\n"
    "Verses\n\nby A. Poet\n\nNovember, 1998  [Etext #1538]\n\n"
    "******This file should be named verse10.txt******\n\n"
    "We produce about two million dollars for each hour we work.\n\n"
    "Mail to:\n\nProject Gutenberg\nP. O. Box  2782\nChampaign, IL 61825\n\n"
    "**Information prepared by the Project Gutenberg legal advisor**\n\n(Three Pages)\n\n"
)
HEADER_2003 = (
    HEADER_1998.split("Verses\n\nby")[0]
    + "Title: Verses\n\nAuthor: A. Poet\n\nRelease Date: November, 2003  [Etext #4688]\n"
    "[Yes, we are more than one year ahead of schedule]\n\nEdition: 10\n\nLanguage: English\n\n*** \n\n\n"
)
FOOTER_2003 = (
    "\n\nMore information about this book is at the top of this file.\n\n\n"
    "We are now trying to release all our etexts one year in advance.\n\n"
    "Here is the briefest record of our progress:\n\neBooks Year Month\n\n    1  1971 July\n\n"
    "Contributions are being solicited by Project Gutenberg in:\nAlabama, Alaska, Arkansas\n\n"
)
ELECTRONIC = "<<THIS ELECTRONIC VERSION OF THE PLAYS\nIS COPYRIGHT BY WORLD LIBRARY>>\n"
BOX = "+-----------+\n| Transcriber's Note: |\n|   |\n| Spelling kept. |\n+-----------+\n"

AROUND = {
    "1998": (HEADER_1998 + SMALL_PRINT, "End of The Project Gutenberg Etext of Verses\n"),
    "1998, no footer": (HEADER_1998 + SMALL_PRINT, ""),
    "2003, no marks": (HEADER_2003, FOOTER_2003 + SMALL_PRINT),
    "2003, no small print": (HEADER_2003, FOOTER_2003),
    "2003, all marks": (HEADER_2003 + START, END + FOOTER_2003 + SMALL_PRINT),
    "1991": (
        "[Project Gutenberg Etext of Verses]\n\n******This file should be named v10.txt******\n\n\n",
        "End of Project Gutenberg Etext of Verses\n",
    ),
    "1993": (
        f'Project Gutenberg\'s Etext of Plays\n\n["Small Print" V.12.08.93]\n{ELECTRONIC}\n',
        f"{ELECTRONIC}\nEnd of this Etext of The Plays\n",
    ),
    "German": (
        START + "This Etext is in German.\n\nDas Projekt Gutenberg-DE: http://gutenberg.spiegel.de\n\n",
        "Ende dieses Projekt Gutenberg Etextes Verse, von A. Dichter" + END,
    ),
    "German, Etext": (START, "Ende dieses Etextes Verse" + END),
    "French": (START, "Fin de Project Gutenberg Etext Verses" + END),
    "French, readers": (START, "Ce document fut présenté en lecture à l'ABU, pour Project Gutenberg" + END),
    "Spanish": (START, "Fin del Proyecto Gutenberg de Versos" + END),
    "Italian": (START, "Fine del Progetto Gutenberg Etext di Versi" + END),
    "Dutch": (START, "Einde van dit Project Gutenberg Etext" + END),
    "copyrighted": (
        "*** START OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK X ***\n\n",
        "** This is a COPYRIGHTED Project Gutenberg Etext, Details Above **"
        "\n\n*** END OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK X ***",
    ),
    "note of two paragraphs": (START + "[Transcriber's Note: spelling kept.\n\nItalics are _so_.]\n\n", END),
    "note under a heading": (
        START + "TRANSCRIBER'S NOTES\n\n  Spelling kept.\n\n  2. Hyphens too.\n\n\n",
        END,
    ),
    "note in a box": (START + BOX + "\n", "\n\n" + BOX + END),
    "note between stars": (
        START + "**********\nTranscriber's Note:\n\nSpelling.\n\nItalics.\n**********\n\n",
        END,
    ),
    "note at the end": (
        START,
        "\n\n    *    *    *    *    *\n\nTranscriber’s Notes:\n\nErrors.\n\nPage 10: a" + END,
    ),
    "thanks": (
        START + "Many thanks to the library of X for its copy.\n\nE-text prepared by A, B,\nand the "
        "Online Distributed Proofreading Team\n\nNote: Images of the original are at\n"
        "      https://archive.org/details/x\n\n",
        END,
    ),
    "Finnish end": (START, f"Project Gutenbergin e-kirjan loppu\n\n{END}"),
    "Australia": ("", "Project Gutenberg Australia\n"),
    "credits": (f"{START}\nCredits: Ana and the Online Distributed Proofreading Team\n\n\n", END),
    "French note": (f"{START}\nNote sur la transcription: Les erreurs ont été corrigées.\n\n\n", END),
    "French credits": (f"{START}\n\nProduit par Ana et l'équipe des Distributed Proofreaders\n\n", END),
    "Portuguese credits": (f"{START}\n\nProduzido por Ana e Rui\n\n\n", END),
    "Dutch credits": (f"{START}\nGeproduceerd door het Gedistribueerd Proofreading Team\n\n", END),
    "German notes": (
        f"{START}\nDieser Text wurde von Ana erfasst.\n\n",
        f"[ Hinweise zur Transkription:\n\n    Das Original ist in Fraktur.\n    ]\n\n{END}",
    ),
    "Swedish end": (START, f"Slutet på Project Gutenbergs Lamorna, av Ana\n\n{END}"),
    "a rule before a note": (START, f"    *    *    *\n\nTRANSCRIBER'S NOTES:\n\nPage 1: llama.\n\n\n{END}"),
    "transcribed": (f"{START}\n[This text was transcribed from the 1910 edition by Ana]\n\n\n", END),
}


def verses(n: int) -> str:
    lines = [f"{number}. The river ran past the mill, and the llamas knew it well." for number in range(n)]
    return "FIRSTLINE.\n\n" + "\n\n".join(lines) + "\n\nLASTLINE."


@pytest.mark.parametrize("form", AROUND)
@pytest.mark.parametrize("n", [5, 400])
def test_every_word_of_the_book_stays_and_no_word_of_gutenberg_s(form, n):
    before, after = AROUND[form]
    document = clean(Book("pg1", f"{before}{verses(n)}\n\n{after}"))
    assert isinstance(document, Document)
    text = document.text.replace("    *    *    *    *    *", "").strip()
    assert text == verses(n) and "boilerplate" not in document.meta


def test_a_mark_in_the_wrong_place_does_not_take_the_book_and_is_named():
    for text in (
        f"{verses(50)}\n\n{START}",
        f"{END}\n{verses(50)}",
        f"{SMALL_PRINT[:60]}\n\n{verses(50)}\n\n{SMALL_PRINT}",
    ):
        document = clean(Book("pg1", text))
        assert isinstance(document, Document) and verses(50) in document.text
    document = clean(Book("pg1", f"{verses(50)}\n\n{START}"))
    assert isinstance(document, Document) and document.meta["boilerplate"].startswith("kept whole")


def test_a_note_after_the_title_goes_and_the_title_stays():
    note = "\n\n     The text is based on translations by Ana.\n\n\n"
    title = "TALES\n\nBy Rui\n\n\n"
    for before, heading in ((title, "PREPARER’S NOTE"), (title, "Original Transcriber's Notes:")):
        document = clean(Book("pg1", f"{START}\n\n{before}{heading}{note}{verses(9)}\n{END}"))
        assert isinstance(document, Document) and "based on" not in document.text
        assert document.text == f"{before}{verses(9)}"


def test_pictures_are_the_user_s_choice():
    text = verses(5).replace("\n\n3.", "\n\n[Illustration: A mill\nby the river]\n\n3.", 1)
    with_pictures, without = (clean(Book("pg1", text), Options(illustrations=kept)) for kept in (True, False))
    assert isinstance(with_pictures, Document) and with_pictures.text == text
    assert isinstance(without, Document) and without.text.split() == verses(5).split()


def test_notes_inside_a_book_and_sections_after_notes_stay():
    text = f"{verses(100)}\n\nTranscriber's Note\n\nSpelling.\n\n\n\n\nINDEX\n\n" + "\n".join(
        f"llama, {number}" for number in range(300)
    )
    document = clean(Book("pg1", text))
    assert isinstance(document, Document)
    assert document.text.startswith(verses(100)) and document.text.endswith("llama, 299")
    assert "Transcriber" not in document.text
