"""What encoders look at, how their layers compare, and what their features tell apart: numbers, and pictures of them."""
