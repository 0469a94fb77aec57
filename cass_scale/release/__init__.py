"""Encoders on their way to other programs: files that were checked, a card that says what they are, an upload."""
