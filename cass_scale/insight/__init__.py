"""What encoders look at, how their layers compare, what their features keep apart: numbers and pictures."""
