"""Errors meant for the reader: one sentence that names the value and the way out."""


class NbtoolsError(Exception):
    """Base of every error that nbtools shows to a person; the command line prints it without a traceback."""
