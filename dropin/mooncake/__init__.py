"""The import name that engines know; see the README for what is served."""

import mooncake._installed  # noqa: F401
