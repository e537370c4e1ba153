"""What is wrong with data."""


class DataError(ValueError):
    """Data is absent, damaged or contradicts itself; the message says what to do."""
