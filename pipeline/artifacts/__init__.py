"""The artifact store: immutable, digest-checked folders that are found again by key.

{store}/{step}/{key}/manifest.json      written last, never overwritten
{store}/{step}/{key}/{root}/…           the files; `root` is the first 16 digits of the content's digest
"""

from pipeline.artifacts.fetching import fetch, fetch_file, fetch_folder
from pipeline.artifacts.stores import Store, open_store
from pipeline.artifacts.transfer import find_manifest, publish, read_manifest

__all__ = [
    "Store",
    "fetch",
    "fetch_file",
    "fetch_folder",
    "find_manifest",
    "open_store",
    "publish",
    "read_manifest",
]
