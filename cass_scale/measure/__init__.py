"""Benchmarks of this machine on a person's own data: `cass-scale bench`. Sides in turns, medians, a record."""
