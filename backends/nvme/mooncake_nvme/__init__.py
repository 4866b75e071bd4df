"""Tier `lmdb`: objects on a local SSD, their bytes in one file, and where they are in LMDB."""

try:
    from mooncake_nvme.tier import LmdbTier
except ImportError as error:
    raise ImportError(f"{error}; pip install 'mooncake-toolkit[nvme]'") from error

__all__ = ["LmdbTier"]
