"""Teachers' next-token distributions on disk; `format` says how they lie there."""
