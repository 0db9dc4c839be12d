"""Classify images with an exported model: onnxruntime, numpy and Pillow, nothing else.

    python examples/serve_onnx.py model.onnx cat.png dog.jpg     classes, and open gates by layer
    python examples/serve_onnx.py model.onnx --port 8000         the same over HTTP, as JSON:
    curl --data-binary @cat.png http://localhost:8000/

`gaternet export RUN --out model.onnx` writes the file; all that is needed here is in its metadata.
"""

import argparse
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # that Pillow reads by itself
LARGEST_REQUEST = 20_000_000  # bytes


class Classifier:
    """An exported model and what it says about itself."""

    def __init__(self, file: str) -> None:
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        found = self.session.get_modelmeta().custom_metadata_map
        self.about: dict[str, Any] = {name: json.loads(value) for name, value in found.items()}
        if self.about["mean"] is None:
            raise SystemExit(f"{file} does not say how images are scaled: export it from its run")

    def pixels(self, file: str | BinaryIO) -> np.ndarray:
        """Return an image as the network takes it, (C, H, W) float32."""
        channels, height, width = self.about["input_size"]
        image = ImageOps.exif_transpose(Image.open(file, formats=FORMATS))
        if image.mode.startswith("I"):  # 16 bits of grey, which convert would cut off at 255
            grey = np.rint(np.asarray(image, dtype=np.float32) / 257)
            image = Image.fromarray(grey.astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
        # The shorter side is scaled, then the centre is cut out.
        wanted, shorter = self.about["shorter_side"] or min(height, width), min(image.size)
        if shorter != wanted:
            size = [side * wanted // shorter for side in image.size]
            image = image.resize(size, Image.Resampling[self.about["interpolation"].upper()])
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
        if channels == 1:
            image = image.convert("L")
        values = np.asarray(image, dtype=np.float32).reshape(height, width, channels) / 255
        mean, std = (np.array(self.about[name], np.float32) for name in ("mean", "std"))
        return ((values - mean) / std).transpose(2, 0, 1)

    def classify(self, images: list[np.ndarray], top: int = 5) -> list[dict[str, Any]]:
        """Return the likeliest classes of each image, and how many gates each layer opens."""
        logits, *gates = self.session.run(None, {"images": np.stack(images)})
        powers = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        return [
            {
                "classes": [
                    {"name": self.name(i), "probability": float(p[i])} for i in np.argsort(-p)[:top]
                ],
                "gates": self.opened(gates[0][number]) if gates else [],
            }
            for number, p in enumerate(probabilities)
        ]

    def name(self, index: int) -> str:
        """Return a class's name, its number where the file has none."""
        return self.about["classes"][index] if self.about["classes"] else str(index)

    def opened(self, gates: np.ndarray) -> list[dict[str, Any]]:
        """Return how many of an image's gates (G,) are open, layer by layer."""
        layers, start = [], 0
        for point in self.about["gate_points"]:
            part = gates[start : start + point["gates"]]
            opened = int(np.count_nonzero(part))
            layers.append({"layer": point["name"], "open": opened, "of": point["gates"]})
            start += point["gates"]
        return layers


def show(file: str, found: dict[str, Any]) -> None:
    """Print what a model says of one image."""
    print(file)
    for likely in found["classes"]:
        print(f"  {100 * likely['probability']:5.1f} %  {likely['name']}")
    if found["gates"]:
        print("  gates open:")
    for layer in found["gates"]:
        print(f"  {layer['open']:5} of {layer['of']:<5} {layer['layer']}")


def serve(classifier: Classifier, port: int) -> None:
    """Answer each POST of an image file with what the model says of it, as JSON."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isdigit() or int(length) > LARGEST_REQUEST:
                self.send_error(413)
                return
            content = io.BytesIO(self.rfile.read(int(length)))
            try:
                pixels = classifier.pixels(content)
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                self.send_error(400, f"no image: {type(error).__name__}")
                return
            answer = json.dumps(classifier.classify([pixels])[0]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    with ThreadingHTTPServer(("localhost", port), Handler) as server:
        print(f"http://localhost:{server.server_port}/", flush=True)
        server.serve_forever()


def main() -> None:
    """Classify the images of the command line in one batch, or serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="exported .onnx file")
    parser.add_argument("images", nargs="*", help="image files")
    parser.add_argument("--port", type=int, help="answer HTTP requests on this port; 0: a free one")
    arguments = parser.parse_args()
    classifier = Classifier(arguments.model)
    if arguments.port is not None:
        serve(classifier, arguments.port)
    elif not arguments.images:
        parser.error("give image files, or --port")
    else:
        found = classifier.classify([classifier.pixels(file) for file in arguments.images])
        for file, says in zip(arguments.images, found, strict=True):
            show(file, says)


if __name__ == "__main__":
    main()
