"""Methods turn views into a loss. One base class; subclass it once, never twice."""
