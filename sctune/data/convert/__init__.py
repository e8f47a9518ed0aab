"""Raw data sets of the paper in, the MVTec layout with a manifest out: `sctune data list | prepare | verify`."""

from sctune.data.convert.plan import Counts, RawSet
from sctune.data.convert.prepare import prepare
from sctune.data.convert.registry import known_sets
from sctune.data.convert.verify import Problem, Verification, verify
from sctune.data.manifest import FileRecord, Manifest, read_manifest

__all__ = [
    "Counts",
    "FileRecord",
    "Manifest",
    "Problem",
    "RawSet",
    "Verification",
    "known_sets",
    "prepare",
    "read_manifest",
    "verify",
]
