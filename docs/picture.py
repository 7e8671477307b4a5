"""Writes demo.svg: what `hindsight-exec demo` shows, as a picture.

    python docs/picture.py

Needs rich, which comes with the extra `cli`.
"""

import io
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

shown = subprocess.run(
    [sys.executable, "-m", "hindsight_exec", "demo"], check=True, capture_output=True, text=True
)
console = Console(record=True, width=100, file=io.StringIO())
console.print(Text("$ hindsight-exec demo", style="bold"))
console.print(Text(shown.stdout.rstrip()))
picture = console.export_svg(title="")
# Whoever looks at it need not ask a font of somebody else's server.
picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
picture = picture.replace("Fira Code", "DejaVu Sans Mono")
Path(__file__).with_name("demo.svg").write_text(picture, encoding="utf-8")
