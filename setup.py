"""Puts the course into the wheel, where `dsv3-port start` finds it; pyproject.toml says all the rest."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

COURSE = ("notebooks", "data", "docs", "ci/profiles")
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*")


class BuildWithCourse(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "dsv3_port" / "shipped"
            shutil.rmtree(target, ignore_errors=True)  # an earlier build's
            for folder in COURSE:
                shutil.copytree(folder, target / folder, ignore=LEFT_OUT)


setup(cmdclass={"build_py": BuildWithCourse})
