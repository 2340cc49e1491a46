"""Plumbing of the course: profiles, assets, meters, widgets, plots, training loop, records, checks, notebooks.

Nothing heavy is imported here: `import nbtools` stays far under 0.3 s. `from nbtools import meters` loads its needs.
"""

import logging

__version__ = "0.1.0"

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # says that an optional kernel is missing
