"""Exit codes, and which error means which."""

from __future__ import annotations

from typing import Final

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
BUG: Final = 70
INTERRUPTED: Final = 130

TABLE: Final = (
    (DONE, "done"),
    (FAILED, "failed: it ran, and the answer is bad"),
    (USAGE, "wrong usage or configuration"),
    (UNREACHABLE, "the cluster cannot be reached, or did not answer in time"),
    (BUG, "a bug in mooncake; the message says where the report was saved"),
    (INTERRUPTED, "interrupted by Ctrl-C"),
)


def code_of(error: BaseException) -> int:
    """The exit code of an error."""
    from mooncake_core import errors

    if isinstance(error, errors.PeerUnreachable | errors.DeadlineExceeded):
        return UNREACHABLE
    usage = (
        errors.ConfigError,
        errors.UsageError,
        errors.ModelError,
        errors.PluginUnknown,
        errors.PluginUnavailable,
        errors.InvalidRequest,
        errors.MemberExists,
        errors.AuthenticationFailed,
        errors.VersionMismatch,
    )
    return USAGE if isinstance(error, usage) else FAILED
