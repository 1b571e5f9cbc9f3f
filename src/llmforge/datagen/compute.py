"""Functions that a recipe's expressions may call. Places are {"lon", "lat"} or [lon, lat], in degrees (WGS 84)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

EARTH_RADIUS_M = 6371008.8  # mean radius, IUGG 1980
DIGITS = 6  # of a degree: 0.1 m
AXES = ("ns", "ew")
WORDS = {word: word for word in ("perpendicular", "along", "ns", "ew")}  # may stand without quotes


def position(place: Any) -> tuple[float, float]:
    """(lon, lat) of a place.

    Raises:
        ValueError: no place, or out of range.
    """
    if isinstance(place, dict):
        lon, lat = place.get("lon"), place.get("lat")
    else:
        lon, lat = place if isinstance(place, list) and len(place) == 2 else (None, None)
    try:
        lon, lat = float(lon), float(lat)  # type: ignore[arg-type]  # None is what the handler is for
    except (TypeError, ValueError):
        raise ValueError(f"{place!r} is no place; expected lon and lat") from None
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise ValueError(f"lon {lon:g}, lat {lat:g} lie outside -180..180 and -90..90")
    return lon, lat


def offset(place: Any, axis: str, side: str = "perpendicular", delta: float = 0.005) -> list[list[float]]:
    """Two points `delta` degrees to either side of a place: across its axis, or along it.

    An axis "ns" runs north-south: across it the longitude changes, along it the latitude.

    Raises:
        ValueError: an axis or side that does not exist.
    """
    if axis not in AXES or side not in ("perpendicular", "along"):
        raise ValueError(f"axis {axis!r}, side {side!r}: expected ns or ew, and perpendicular or along")
    lon, lat = position(place)
    in_longitude = (axis == "ns") == (side == "perpendicular")
    points = [(lon + sign * delta, lat) if in_longitude else (lon, lat + sign * delta) for sign in (-1, 1)]
    return [[round(x, DIGITS), round(y, DIGITS)] for x, y in points]


def point(place: Any) -> list[float]:
    """[lon, lat] of a place."""
    return [round(value, DIGITS) for value in position(place)]


def distance_m(a: Any, b: Any) -> float:
    """Metres between two places on a sphere (haversine)."""
    (lon_a, lat_a), (lon_b, lat_b) = (tuple(map(math.radians, position(place))) for place in (a, b))
    h = math.sin((lat_b - lat_a) / 2) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin((lon_b - lon_a) / 2) ** 2
    return 2 * EARTH_RADIUS_M * math.asin(math.sqrt(h))


def close(a: Any, b: Any, tolerance: float = 1e-6) -> bool:
    """Whether two numbers, or lists and mappings of them, differ by at most `tolerance` everywhere."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(close(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key], tolerance) for key in a)
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
    return abs(a - b) <= tolerance if numbers else bool(a == b)


def distinct(items: Sequence[Any]) -> bool:
    """Whether no item stands twice."""
    keys = [json.dumps(item, sort_keys=True) for item in items]
    return len(set(keys)) == len(keys)


def matches(text: str, pattern: str) -> bool:
    """Whether the whole text fits a regular expression."""
    return re.fullmatch(pattern, text) is not None


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "all": all,
    "any": any,
    "close": close,
    "distance_m": distance_m,
    "distinct": distinct,
    "float": float,
    "int": int,
    "join": lambda items, by="": by.join(map(str, items)),
    "len": len,
    "lower": lambda text: text.lower(),
    "matches": matches,
    "max": max,
    "min": min,
    "offset": offset,
    "point": point,
    "round": round,
    "sorted": sorted,
    "str": str,
    "sum": sum,
    "upper": lambda text: text.upper(),
}
