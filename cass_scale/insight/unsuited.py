"""What is raised for a network that a kind of picture does not fit."""

from __future__ import annotations


class Unsuited(Exception):
    """A network or set of images cannot be shown in this way; the text says why."""
