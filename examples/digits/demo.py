"""The tour: build the digits model for every target of targets.yaml, tune briefly, run it on held-out images.

    python examples/digits/demo.py [OUTPUT FOLDER [TARGETS FILE]]

Everything is done through the `tvmbridge` command and the public Python API, as a user would.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime

import tvmbridge

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
MINIMUM_ACCURACY = 0.95


def main() -> int:
    """Build, inspect, check, benchmark, and compare the accuracy with ONNX Runtime's; 1 if something is not right."""
    output = Path(sys.argv[1] if len(sys.argv) > 1 else REPOSITORY / "demo-out")
    targets = sys.argv[2] if len(sys.argv) > 2 else str(REPOSITORY / "targets.yaml")
    output.mkdir(exist_ok=True)
    bundle, model, held_out = output / "digits.tvmb", HERE / "digits.onnx", HERE / "held_out.npz"
    images, labels = (np.load(held_out)[name] for name in ("image", "label"))

    # Verified on real images too, besides random data.
    np.savez(output / "real.npz", image=images[:1])
    build = ["build", str(model), "--targets", targets, "--dim", "batch=1", "-o", str(bundle)]
    built = tvmbridge_command(*build, "-i", str(output / "real.npz"))
    if not bundle.exists():
        return 1
    tvmbridge_command("inspect", str(bundle))
    tvmbridge_command("check", str(bundle))
    tvmbridge_command("bench", str(bundle), "--against", str(model), "--seconds", "3")

    with tvmbridge.load(bundle) as session:
        ours = np.array([session.run({"image": images[i : i + 1]})["logits"].argmax() for i in range(len(images))])
    reference = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    theirs = reference.run(["logits"], {"image": images})[0].argmax(1)
    accuracy, reference_accuracy = float(np.mean(ours == labels)), float(np.mean(theirs == labels))
    print(f"\nheld-out accuracy: {accuracy:.2%} of {len(labels)} images; ONNX Runtime: {reference_accuracy:.2%}")
    right = accuracy == reference_accuracy and accuracy >= MINIMUM_ACCURACY
    if built == 1:
        print("some targets could not be built here; the messages above say what each of them needs")
    return 0 if right else 1


def tvmbridge_command(*arguments: str) -> int:
    """Run one `tvmbridge` command, shown as it would be typed; its exit code."""
    print(f"\n$ tvmbridge {' '.join(arguments)}", flush=True)
    return subprocess.run([sys.executable, "-m", "tvmbridge", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
