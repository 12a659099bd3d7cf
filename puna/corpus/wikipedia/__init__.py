from puna.extras import require

require("mwparserfromhell")
