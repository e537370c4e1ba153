"""What the fields of attacks, searches and defenses may hold: whole numbers, finite ones and shares."""

import numbers

import torch


def check_count(name: str, count: int, least: int = 1) -> None:
    """Raise a ValueError unless it is a whole number of at least ``least``."""
    if not isinstance(count, numbers.Integral) or isinstance(count, bool) or count < least:
        raise ValueError(f"{name}={count!r}: expected a whole number of at least {least}")


def check_number(name: str, number: float, least: float = -torch.inf, above: float = -torch.inf) -> None:
    """Raise a ValueError unless it is a finite number, of at least ``least`` and greater than ``above``."""
    is_number = isinstance(number, numbers.Real) and not isinstance(number, bool)
    if not is_number or not (least <= number < torch.inf and above < number):  # NaN is neither
        bound = f" of at least {least}" if least > -torch.inf else f" above {above}" if above > -torch.inf else ""
        raise ValueError(f"{name}={number!r}: expected a finite number{bound}")


def check_share(name: str, number: float) -> None:
    """Raise a ValueError unless it is a number in [0, 1]."""
    if not isinstance(number, numbers.Real) or isinstance(number, bool) or not 0 <= number <= 1:
        raise ValueError(f"{name}={number!r}: expected a share in [0, 1]")
