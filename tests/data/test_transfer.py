"""One download over a real local connection: continued, restarted, broken off."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from robustcli.data.transfer import InterruptedTransferError, Part, transfer


@pytest.fixture
def part(tmp_path: Path) -> Part:
    return Part(tmp_path / "file.part")


def _broken_off(served: Any, part: Part, after: int) -> None:
    served.cut = after
    message = f"ended after {after} of {len(served.content)} bytes"
    with pytest.raises(InterruptedTransferError, match=message):
        transfer(served.url, part)


def test_whole(served: Any, part: Part) -> None:
    transfer(served.url, part)
    assert part.path.read_bytes() == served.content
    assert served.requests == [None]


def test_continued_where_it_broke_off(served: Any, part: Part) -> None:
    _broken_off(served, part, 1000)
    assert part.path.read_bytes() == served.content[:1000]
    transfer(served.url, part)
    assert part.path.read_bytes() == served.content
    assert served.requests == [None, "bytes=1000-"]


def test_another_version_is_never_appended(served: Any, part: Part) -> None:
    _broken_off(served, part, 1000)
    served.content, served.etag = bytes(2000), '"v2"'
    transfer(served.url, part)
    assert part.path.read_bytes() == bytes(2000)


def test_a_server_without_ranges_starts_anew(served: Any, part: Part) -> None:
    _broken_off(served, part, 1000)
    served.ranges = False
    transfer(served.url, part)
    assert part.path.read_bytes() == served.content


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_reliable_mark_nothing_is_continued(
    served: Any, part: Part, etag: str | None
) -> None:
    served.etag = etag
    _broken_off(served, part, 1000)
    assert part.size == 0
    transfer(served.url, part)
    assert part.path.read_bytes() == served.content
    assert served.requests == [None, None]


def test_a_part_that_is_too_long_is_dropped(served: Any, part: Part) -> None:
    part.path.write_bytes(bytes(len(served.content) + 1))
    part.mark_path.write_text('"v1"')
    transfer(served.url, part)
    assert part.path.read_bytes() == served.content


def test_a_refusal_keeps_what_is_there(served: Any, part: Part) -> None:
    _broken_off(served, part, 1000)
    with pytest.raises(HTTPError, match="404"):
        transfer(served.url + "missing", part)
    assert part.size == 1000
