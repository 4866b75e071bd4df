"""Tier `fsspec`: one file or object per object, wherever fsspec reaches."""

try:
    from mooncake_object.tier import FsspecTier
except ImportError as error:
    raise ImportError(f"{error}; pip install 'mooncake-toolkit[object]'") from error

__all__ = ["FsspecTier"]
