"""Refuses to be a mix of two distributions. Imported first, by the package and by what engines import of it: either file may
be the other distribution's, or gone with it."""

from __future__ import annotations

from mooncake_core.installation import conflict

if problem := conflict():
    raise ImportError(problem)
