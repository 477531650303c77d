"""The benchmark behind ``repro bench``: one table of every part, beside what the originals computed with."""

from repro.bench.run import bench

__all__ = ["bench"]
