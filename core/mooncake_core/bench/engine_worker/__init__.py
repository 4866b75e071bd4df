"""Runs under any interpreter that has a `mooncake.engine` or NIXL: standard library only, nothing of this project."""
