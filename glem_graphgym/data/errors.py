"""The one error of bad data."""


class DataError(ValueError):
    """The data at hand cannot be used as it is; the message names the file or key and what to do."""
