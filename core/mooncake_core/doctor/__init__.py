"""What `mooncake doctor` looks at before a cluster is started here, and what it says: `contract.py` is what a check is."""

from mooncake_core.doctor.contract import Check, Finding, State, Subject, fail, found_and_fix, ok, skip, warn

__all__ = ["Check", "Finding", "State", "Subject", "fail", "found_and_fix", "ok", "skip", "warn"]
