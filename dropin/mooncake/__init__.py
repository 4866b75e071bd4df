"""The import name that engines know; see the README for what is served."""

from mooncake_core.installation import conflict as _conflict

if _problem := _conflict():
    raise ImportError(_problem)
