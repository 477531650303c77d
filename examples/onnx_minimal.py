"""Segment one image with an exported model and nothing of this project: NumPy, Pillow and onnxruntime.

    repro export --config dsrg_vgg16_voc --weights iter_20000.safetensors --out dsrg.onnx
    python examples/onnx_minimal.py dsrg.onnx photo.jpg mask.png

The model is of graph ``multiscale``: it takes the image's bytes and gives probabilities at its size. The mask is the
argmax, a palette PNG; the originals refine it with a dense CRF, which is not part of the model.
"""

import argparse
import json

import numpy as np
import onnxruntime
from PIL import Image


def segment(model: str, image: str, mask: str, provider: str) -> dict[str, float]:
    """Write the mask; returns the share of the image that each class has, by name."""
    session = onnxruntime.InferenceSession(model, providers=[provider])
    if provider not in session.get_providers():  # onnxruntime falls back to the CPU without an error
        raise SystemExit(f"{provider} is not active: {', '.join(session.get_providers())}")
    metadata = session.get_modelmeta().custom_metadata_map
    if metadata.get("graph") != "multiscale":
        raise SystemExit(f"{model}: not a model of repro export --graph multiscale")

    with Image.open(image) as file:
        pixels = np.asarray(file.convert("RGB"), dtype=np.uint8)
    (probs,) = session.run(["multiscale"], {"images": pixels[np.newaxis]})
    indices = probs[0].argmax(axis=0).astype(np.uint8)

    result = Image.fromarray(indices)
    result.putpalette(np.array(json.loads(metadata["palette"]), np.uint8).tobytes())
    result.save(mask)
    names = json.loads(metadata["classes"])
    return {names[index]: float((indices == index).mean()) for index in np.unique(indices)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Segment one image with an exported model.")
    parser.add_argument("model", help="the .onnx, of graph multiscale")
    parser.add_argument("image")
    parser.add_argument("mask", help="the PNG to write")
    parser.add_argument("--provider", default="CPUExecutionProvider")
    options = parser.parse_args()
    for name, share in segment(options.model, options.image, options.mask, options.provider).items():
        print(f"{name:<16}{100 * share:6.2f} %")
