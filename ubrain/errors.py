"""The one exception that ubrain raises for what a user can mend."""


class UbrainError(ValueError):
    """Something in the input is wrong; the message says what, where, what was expected and what to do."""
