"""Segments an image with what seg.export wrote: python onnx_predict.py model.onnx image.png mask.png."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1])
facts = json.loads(session.get_modelmeta().custom_metadata_map["seg"])
image = np.atleast_3d(
    np.asarray(Image.open(sys.argv[2]))
)  # (H, W, C) as stored; of 8 bits, without alpha
batch = image.transpose(2, 0, 1)[None].astype(np.float32)
p = session.run(None, {"image": batch})[0][0]  # (classes, H, W)
assert facts["task"] != "overlapping", "each class has a mask of its own: p > threshold"
mask = p[1] > facts["threshold"] if len(p) == 2 else p.argmax(0)
Image.fromarray(mask.astype(np.uint8)).save(sys.argv[3])
