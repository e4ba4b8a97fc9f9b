"""The on-disk splitter: split (the job) > identity, plan, estimate > ranks, journal > workers > source >
manifest; read loads and verifies what was written."""

from .identity import fingerprint, layout_of
from .manifest import is_sharded, rank_folder, read_manifest, read_rank_manifest
from .plan import DTYPES
from .read import load_shard, verify_shards
from .split import ShardReport, shard_checkpoint

__all__ = [
    "DTYPES",
    "ShardReport",
    "fingerprint",
    "is_sharded",
    "layout_of",
    "load_shard",
    "rank_folder",
    "read_manifest",
    "read_rank_manifest",
    "shard_checkpoint",
    "verify_shards",
]
