"""Names of the file, media and category namespaces in the paper's 20 Wikipedias, and disambiguation marks.

The siteinfo of a dump states the current names, but not older ones and aliases, which many articles still
use. All are lower-case; `hidden_namespaces("de")` contains `datei`, `bild`, `kategorie`, `file` ...
"""

import re

# Media, file and category, the current name first. The English names are valid in every language.
_NAMES = {
    "bg": "медия файл картинка категория",
    "ca": "mèdia fitxer imatge categoria",
    "cs": "média soubor obrázek kategorie",
    "da": "media medie fil billede kategori",
    "de": "medium datei bild kategorie",
    "en": "media file image category",
    "es": "medio archivo imagen categoría",
    "fr": "média fichier image catégorie",
    "hr": "medij mediji datoteka slika kategorija",
    "hu": "média fájl kép kategória",
    "it": "media file immagine categoria",
    "nl": "media bestand afbeelding categorie",
    "pl": "media plik grafika kategoria",
    "pt": "multimédia mídia média ficheiro arquivo imagem categoria",
    "ro": "media fișier fişier imagine categorie",
    "ru": "медиа файл изображение категория",
    "sl": "datoteka slika kategorija",
    "sr": "медиј медија датотека слика категорија medij medija datoteka slika kategorija",
    "sv": "media fil bild kategori",
    "uk": "медіа файл зображення категорія изображение медиа категория",
}
LANGUAGES = tuple(_NAMES)

_DISAMBIGUATION = re.compile(
    r"\{\{\s*(?:"
    r"disambig(?:uation|2|-geo)?|disamb|dab2?|geodis|hndis|numberdis|schooldis|hospitaldis|mathdab|"
    r"letter-numbercombdisambig|chinese[- ]title[- ]disambig|begriffsklärung|homonymie|homonimie|"
    r"desambiguaci(?:ón|ó)|"
    r"desambigua[cç][aã]o|disambigua|ujednoznacznienie|"
    r"dp|doorverwijspagina|amstdp|förgrening|gren|"
    r"olika[ _]betydelser|rozcestn[ií]k|flertydig(?:hed)?|"
    r"egyért|egyértelműsítő(?:[ _]lap)?|dezambiguizare|dez|"
    r"razdvojba|razločitev|пояснение|неоднозначность|неоднозначність|нз|багатозначність|вишезначност|"
    r"вишезначна[ _]одредница|višeznačna[ _]odrednica"
    r")\s*[|}]|__(?:DISAMBIG|BEGRIFFSKLÄRUNG)__",
    re.IGNORECASE,
)


def hidden_namespaces(language: str) -> frozenset[str]:
    """Lower-case namespaces whose links show no text: files, media and categories."""
    return frozenset(f"{_NAMES['en']} {_NAMES.get(language, '')}".split())


def is_disambiguation(wikitext: str) -> bool:
    """Whether a page is marked as a disambiguation page, which only lists the meanings of its title."""
    return _DISAMBIGUATION.search(wikitext) is not None
