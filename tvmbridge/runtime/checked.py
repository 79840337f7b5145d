"""Which weights this user has already checked on this machine: hashing gigabytes at every start would be its cost.

What is remembered is the identity of the file: device, inode, size, and the times of its last change, of which nobody
but root can set the second (ctime). A copy of the file, or one that was touched, is checked again.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from tvmbridge.bundle import Bundle, VariantEntry
from tvmbridge.cache import read_cached, write_cached

_SMALL_BYTES = 1 << 20  # hashed in a millisecond: nothing to remember
_SETTLED_AFTER_NS = 2_000_000_000  # a change within one tick of a file system's clock would leave the times the same


class CheckedWeights:
    """What is known of a variant's weights in an open bundle. folder: the cache, of this user alone.

    known: whether their digests were compared before, in this very file.
    """

    def __init__(self, bundle: Bundle, variant: VariantEntry, folder: Path) -> None:
        # Looked at before anything is read: what changes the file later changes this too.
        status: os.stat_result = bundle.status
        times_ns = (status.st_mtime_ns, status.st_ctime_ns)
        self._settled = time.time_ns() - max(times_ns) > _SETTLED_AFTER_NS
        self._identity = f"{status.st_dev} {status.st_ino} {status.st_size} {times_ns[0]} {times_ns[1]}\n".encode()
        # The manifest has the digest of every weight.
        manifest, name = hashlib.sha256(bundle.manifest_bytes), hashlib.sha256(variant.name.encode())
        self._folder, self._name = folder, f"{manifest.hexdigest()}-{name.hexdigest()[:16]}.checked"
        self._large = sum(weight.size_bytes for weight in variant.weights) > _SMALL_BYTES
        self.known = self._large and read_cached(folder, self._name) == self._identity

    def remember(self) -> None:
        """Note that the digests were compared; nothing where the file has just been written, or there is no cache."""
        if self._large and self._settled and not self.known:
            write_cached(self._folder, self._name, self._identity)
