"""What we need of an event store: the interface that the package `store` defines, by our name.

`SqliteStore` and `MemoryStore` fulfil it; a contract test suite says what that means.
"""

try:
    from store.protocol import BlobStore, EventStore
    from store.records import Finding, NewEvent, Record, Removed, RunInfo
except ImportError as error:
    # A module of the user's own, found first on the path; `import store` is all it takes.
    import sys

    from kitchen.errors import StoreError

    raise StoreError(
        f"`import store` found {getattr(sys.modules.get('store'), '__file__', None) or 'nothing'}, "
        "which is not the event store that kitchen brings along",
        hint="a module of your own named `store` stands in the way; rename it",
    ) from error

__all__ = ["BlobStore", "EventStore", "Finding", "NewEvent", "Record", "Removed", "RunInfo"]
