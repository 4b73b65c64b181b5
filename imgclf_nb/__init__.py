"""Train an image classifier on your own photographs and serve it on a CPU."""
from importlib.metadata import version

__version__ = version("imgclf_nb")
