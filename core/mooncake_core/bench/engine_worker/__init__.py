"""Runs under any interpreter that has a `mooncake.engine`: standard library only, nothing of this project."""
