from puna.extras import require

require("py7zr", "selectolax")
