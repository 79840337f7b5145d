"""Classify the held-out digits with a bundle and print the accuracy: python classify.py digits.tvmb"""

import sys
from pathlib import Path

import numpy as np

import tvmbridge

held_out = np.load(Path(__file__).with_name("held_out.npz"))
images, labels = held_out["image"], held_out["label"]
session = tvmbridge.load(sys.argv[1])
batch = session.inputs[0].shape[0]
correct = 0
for start in range(0, len(images), batch):
    part = images[start : start + batch]
    padded = np.pad(part, ((0, batch - len(part)), (0, 0), (0, 0), (0, 0)))  # the last batch may be short
    logits = session.run({"image": padded})["logits"][: len(part)]
    correct += int(np.sum(logits.argmax(1) == labels[start : start + batch]))
print(f"held-out accuracy {correct / len(images):.2%} ({correct} of {len(images)} images)")
