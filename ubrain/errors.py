"""What ubrain raises for what a user can mend."""


class UbrainError(ValueError):
    """Something in the input is wrong; says what, where, what was expected and what to do."""


class MissingError(UbrainError):
    """A file that is needed is not there; nothing is said against those that are."""
