"""Questions about speed and cost, each a command that leaves a record."""
