"""Settings for the type checker, which reads them without a database to speak of."""

import os

os.environ.setdefault("DATABASE_URL", "postgresql:///types")
os.environ.setdefault("SECRET_KEY", "types")
os.environ.setdefault("ENCRYPTION_KEYS", "dHlwZXMgdHlwZXMgdHlwZXMgdHlwZXMgdHlwZXMgdHk=")  # no secret: "types types …"

from removal.config.settings import *  # noqa: F403
