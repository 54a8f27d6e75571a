"""Which file systems a store refuses, because locks or shared memory do not hold there.

Rules: WAL needs memory shared by all who have the file open, and a lease needs locks that every
machine sees; both fail silently over a network. So network file systems are refused by their type,
before anything is written; KITCHEN_ALLOW_NETWORK_FS=1 overrides this. A file system whose locks
fail loudly is refused where the lock is taken, and that cannot be overridden.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from store.errors import UnfitFilesystem

OVERRIDE = "KITCHEN_ALLOW_NETWORK_FS"
_MOUNTS = Path("/proc/self/mounts")

_NETWORK = frozenset(
    """
    afs beegfs beegfs_nodev ceph cifs coda glusterfs gpfs lustre ncpfs nfs nfs4 orangefs pvfs2
    smb2 smb3 smbfs wekafs fuse.beegfs fuse.ceph fuse.gcsfuse fuse.glusterfs fuse.goofys
    fuse.juicefs fuse.mount-s3 fuse.rclone fuse.s3fs fuse.sshfs
    """.split()  # noqa: SIM905
)


def refuse_network(path: Path, mounts: str | None = None) -> None:
    """Raise UnfitFilesystem where `path` lies on a network file system."""
    if os.environ.get(OVERRIDE) == "1":
        return
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text(errors="surrogateescape")
        except OSError:
            return  # not Linux: only the locks themselves can tell
    kind = filesystem_of(path, mounts)
    if kind in _NETWORK:
        raise UnfitFilesystem(
            path, f"it is of type {kind}, where locks and WAL do not hold between machines"
        )


def filesystem_of(path: Path, mounts: str) -> str:
    """The type of the file system under `path`: that of the longest mount point above it."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[1])
        # of two mounts on one point, the later one hides the earlier
        if len(point) >= best and path.is_relative_to(point):
            best, kind = len(point), fields[2]
    return kind
