"""Facts (fingerprint) and decisions (plans). Imports no torch."""
