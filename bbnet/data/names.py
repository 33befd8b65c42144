"""Compares names of files and identities."""

import unicodedata


def normal_form(name: str) -> str:
    """Returns the composed form of a name, in which names compare: a Mac writes the letter é as e and an accent."""
    return unicodedata.normalize("NFC", name)
