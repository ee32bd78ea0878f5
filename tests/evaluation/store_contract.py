"""What every object store must do, for tests against servers of one kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.core import objects
from robustcli.core.errors import UsageError
from robustcli.core.objects import ObjectStore, StoredObject


def check_objects(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects of any name and size are stored, listed, fetched and removed."""
    store = ObjectStore(f"{scheme}://bucket/objects")
    names = ("a", "b/c d", "b/é#%?.png", "b/+&=[x]*.bin")
    for name in names:
        store.write(name, name.encode())
    assert list(store.listed()) == sorted(names)
    assert [store.read(name).decode() for name in names] == list(names)
    assert len({stored.version for stored in store.listed().values()}) == len(names)
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * 40_000)
    monkeypatch.setattr(objects, "_ONE_PIECE", 2**20)
    monkeypatch.setattr(objects, "_PIECE", 2**20)
    store.send("large", large)
    stored = store.listed()["large"]
    assert stored.size == large.stat().st_size
    store.fetch("large", tmp_path / "fetched", stored)
    assert (tmp_path / "fetched").read_bytes() == large.read_bytes()
    store.remove("large")
    store.remove("large")
    assert list(store.listed()) == sorted(names)
    with pytest.raises(FileNotFoundError):
        store.read("large")
    with pytest.raises(FileNotFoundError):
        store.fetch("large", tmp_path / "again", StoredObject(2**22, "version"))
    with pytest.raises(UsageError, match=f"`{scheme}://nowhere` does not exist"):
        ObjectStore(f"{scheme}://nowhere/x").write("a", b"1")
    with pytest.raises(UsageError, match=f"`{scheme}://nowhere` does not exist"):
        ObjectStore(f"{scheme}://nowhere/x").listed()
