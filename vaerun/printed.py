"""How numbers are printed for people."""

from __future__ import annotations

LONG = 1e9  # from here on the digits before the point hide how large a number is


def fixed(value: float, digits: int, sign: str = "") -> str:
    """A number with so many digits after the point, 12.30; a huge one in short, 1e+30.

    Arguments:
        sign: "+" to print that of a positive number, too.
    """
    return format(value, f"{sign}.{digits}f" if not abs(value) >= LONG else f"{sign}.6g")
