"""The packages of the wheel; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

# conf/ ships as segdpo.conf, which the search for packages in pyproject.toml cannot express.
setup(packages=[*find_packages(include=["segdpo*"]), "segdpo.conf"], package_dir={"segdpo.conf": "conf"})
