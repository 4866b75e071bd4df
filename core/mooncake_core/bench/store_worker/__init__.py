"""Runs under any interpreter that has a `mooncake.store`: standard library only, nothing of this project."""
