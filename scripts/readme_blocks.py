"""Print the n-th ```bash block of a Markdown file, so that what a page says and what CI runs cannot differ.

python scripts/readme_blocks.py 2 [README.md]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def bash_blocks(text: str) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    number, page = int(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "README.md")
    blocks = bash_blocks(page.read_text("utf-8"))
    if not 1 <= number <= len(blocks):
        sys.exit(f"{page}: has {len(blocks)} bash blocks; wanted number {number}")
    sys.stdout.write(blocks[number - 1])
