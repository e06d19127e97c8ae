"""Print what an extra of pyproject.toml needs, for pip: `python list_requirements.py server`.

The image installs this list before our own code is copied; see the Dockerfile.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
print(*project["dependencies"], *project["optional-dependencies"][sys.argv[1]], sep="\n")
