"""Builds the package, as setup.cfg says. Hermes 0.19 imports every file at a plugin's top."""

from setuptools import setup

if __name__ == "__main__":
    setup()
