"""Print what extras of pyproject.toml need, for pip: `python list_requirements.py server demo`.

The image installs this list before our own code is copied; see the Dockerfile.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = [line for name in sys.argv[1:] for line in project["optional-dependencies"][name]]
print(*project["dependencies"], *extras, sep="\n")
