from puna.extras import require

require("polars")
