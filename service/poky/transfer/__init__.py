"""Buckets out and in, in bulk: export, import, verify, and taking over the original's database.

``lines`` is the form of a file, ``files`` its compression, ``session`` the connection; ``out``
streams a bucket, ``load`` stores objects by COPY, ``read`` imports a file, ``poky1`` follows a
database of the original, ``verify`` compares, over ``streams``. Knows nothing of caches: its caller
purges them.
"""

from poky.transfer.files import BadFile, compressed, decompressed
from poky.transfer.lines import BadLine, Exported
from poky.transfer.load import Loader, Stored
from poky.transfer.out import export
from poky.transfer.poky1 import Original
from poky.transfer.read import Imported, import_file
from poky.transfer.session import Session
from poky.transfer.verify import Difference, compare, exported_objects, stored_objects

__all__ = [
    "BadFile",
    "BadLine",
    "Difference",
    "Exported",
    "Imported",
    "Loader",
    "Original",
    "Session",
    "Stored",
    "compare",
    "compressed",
    "decompressed",
    "export",
    "exported_objects",
    "import_file",
    "stored_objects",
]
