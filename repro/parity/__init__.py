"""Holding a net to Caffe, blob by blob: beside a recording, or beside OpenCV's importer."""

from repro.parity.comparison import BlobComparison, Comparison, Difference
from repro.parity.recorded import compare, first_difference, outputs_of
from repro.parity.recording import Recording, read_recording

__all__ = [
    "BlobComparison",
    "Comparison",
    "Difference",
    "Recording",
    "compare",
    "first_difference",
    "outputs_of",
    "read_recording",
]
