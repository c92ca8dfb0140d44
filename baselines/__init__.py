"""The methods that ship with tdabench: one readable file per family, on the public API alone."""
