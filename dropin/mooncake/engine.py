"""`mooncake.engine`, as vLLM's and SGLang's P/D connectors and LMCache import it: upstream's class, served by mooncake_core."""

from __future__ import annotations

import mooncake._installed  # noqa: F401
from mooncake._engine_lifecycle import InnerTransferEngine
from mooncake._engine_transfers import EngineTransfers
from mooncake._engine_types import TransferNotify
from mooncake._engine_types import TransferOpcode as _Opcode


class TransferEngine(EngineTransfers):
    """Moves memory between processes. Answers are numbers: 0 on success, and a negative code on failure, with the reason in the
    log (`mooncake.engine`); TypeError for arguments of the wrong kind. May be called from many threads, and gives the
    interpreter to others while bytes move."""

    TransferOpcode = _Opcode


TransferOpcode = _Opcode

__all__ = ["InnerTransferEngine", "TransferEngine", "TransferNotify", "TransferOpcode"]
