"""Makes this folder a plugin of Hermes, which loads it and calls `register`.

The code is the package `hindsight_exec`: the installed one, else the one in this folder.
"""

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

if __name__ == "hindsight_exec":
    # Not Hermes, but a program that found a folder of this name in front of the package: it gets
    # the package.
    spec = spec_from_file_location(__name__, FOLDER / __name__ / "__init__.py")
    sys.modules[__name__] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[__name__])
elif find_spec("hindsight_exec") is None:
    sys.path.append(str(FOLDER))


def register(ctx):
    """Hand Hermes a memory provider."""
    from hindsight_exec.hermes import HindsightMemoryProvider  # noqa: PLC0415 - found only now

    # Hermes 0.19 also registers memory plugins as general ones, whose ctx takes no provider.
    if hasattr(ctx, "register_memory_provider"):
        ctx.register_memory_provider(HindsightMemoryProvider())
