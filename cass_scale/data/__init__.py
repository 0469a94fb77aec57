"""From files to batches: manifests, splits, decoding, the global plan, the folder stream, embedded sets."""
