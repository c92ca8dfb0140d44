"""The tasks that ship with tdabench: one folder each, with its definition, its card and its ground truth."""
