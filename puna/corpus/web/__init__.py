from puna.extras import require

require("brotli", "fasttext_pybind", "resiliparse")
