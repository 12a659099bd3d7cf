from puna.extras import require

require("httpx2", "unearth")
