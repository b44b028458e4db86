"""Resource quantities, written as the API server writes them: 0.5 is 500m, 1024Mi is 1Gi."""

from decimal import Decimal
from typing import Any, Final

from kubernetes.utils.quantity import parse_quantity

from tests.parts.kube_status import ApiError

_BINARY: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL: Final = {-9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E"}


def canonical(quantity: Any) -> str:
    """Return the shortest text without a fraction, in the system (1000 or 1024) of the given one.

    Raises:
        ApiError: 400, it is none.
    """
    text = str(quantity)
    try:
        value = parse_quantity(text)
    except ValueError as error:
        raise ApiError(
            400,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ) from error
    return _in_binary(value) if text.endswith("i") else _in_decimal(value)


def _in_binary(value: Decimal) -> str:
    power = 0
    while value and value % 1024 == 0 and power + 1 < len(_BINARY):
        value, power = value / 1024, power + 1
    return f"{int(value)}{_BINARY[power]}" if value == int(value) else _in_decimal(value * 1024**power)


def _in_decimal(value: Decimal) -> str:
    for power in sorted(_DECIMAL, reverse=True):
        scaled = value.scaleb(-power)
        if scaled and scaled == int(scaled):
            return f"{int(scaled)}{_DECIMAL[power]}"
    return "0"
