"""What a view shows of a load whose sectors hold the number of the request that wrote them (`numbered` of nbd_load.py)."""

from __future__ import annotations

SECTOR = 512

Request = list[int]
"""[number, sector, sectors, sent, answered], the latter two by one logical clock."""


def numbers(view: bytes) -> list[int]:
    """The request that each sector shows."""
    return [int.from_bytes(view[index : index + 8], "little") for index in range(0, len(view), SECTOR)]


def violations(requests: list[Request], view: bytes, *, answered_before: int = 0) -> list[str]:
    """Where the requests visible in the view are not closed under "answered before the other was sent".

    Args:
        requests: all before and after the point.
        view: the disk.
        answered_before: requests that were answered by then must be in it, whatever it shows.
    """
    by_number = {item[0]: item for item in requests}
    shown = numbers(view)
    newest_sent = max((by_number[number][3] for number in shown if number in by_number), default=0)
    limit = max(newest_sent, answered_before + 1)
    found = []
    for number, sector, sectors, sent, answered in requests:
        if answered >= limit:
            continue
        for index in range(sector, sector + sectors):
            other = by_number.get(shown[index])
            if other is None or (other[0] != number and other[4] < sent):
                found.append(f"request {number} was answered, yet sector {index} shows {shown[index]}")
                break
    return found
