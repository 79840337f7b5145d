"""What the documents show really runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tvmbridge import cli

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.compiler
@pytest.mark.slow
def test_the_ten_lines_of_the_readme_print_ten_logits(tmp_path):
    code = re.search(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL).group(1)
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    numbers = re.findall(r"-?\d+\.\d*(?:e[+-]?\d+)?", done.stdout)
    assert len(numbers) == 10 and len(set(numbers)) > 5
    assert (tmp_path / "digits.tvmb").exists() and (tmp_path / "digits.tune.jsonl").exists()


@pytest.mark.compiler
@pytest.mark.slow
def test_the_demo_builds_every_target_it_can_and_is_as_accurate_as_onnx_runtime(tmp_path):
    targets = (REPOSITORY / "targets.yaml").read_text()
    (tmp_path / "targets.yaml").write_text(re.sub(r"minutes: [\d.]+", "minutes: 0.2", targets))
    demo = [sys.executable, str(REPOSITORY / "examples" / "digits" / "demo.py"), str(tmp_path / "out")]
    done = subprocess.run(
        [*demo, str(tmp_path / "targets.yaml")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = re.search(r"held-out accuracy: ([\d.]+)% .* ONNX Runtime: ([\d.]+)%", done.stdout).groups()
    assert ours == theirs and float(ours) >= 95
    assert re.search(r"^native\s+yes\s+\d+ of \d+\s+\d\.\de-\d\d relative", done.stdout, re.MULTILINE)
    assert re.search(r"^edge\s+yes\s", done.stdout, re.MULTILINE)
    classify = [
        sys.executable,
        str(REPOSITORY / "examples" / "digits" / "classify.py"),
        str(tmp_path / "out/digits.tvmb"),
    ]
    done = subprocess.run(classify, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"held-out accuracy {ours}%" in done.stdout


@pytest.mark.compiler
def test_the_example_of_a_template_computes_what_numpy_computes():
    import kernels
    from tvm import relax

    code = re.search(r"```python\n(.*?)```", (REPOSITORY / "docs" / "schedules.md").read_text(), re.DOTALL).group(1)
    defined: dict = {}
    exec(code, defined)
    template, target = defined["TEMPLATE"], kernels.runnable_targets()[0]
    shapes = [((7, 37), "float32"), ((37,), "float32")]
    lowered = kernels.lower_expression(lambda x, y: relax.op.nn.relu(relax.op.add(x, y)), shapes, target)
    (kernel,) = lowered.kernels
    arrays = [kernels.random_array(np.random.default_rng(i), *shape) for i, shape in enumerate(shapes)]
    assert template.fits(kernel, target) and template.guess(kernel, target) in template.configs(kernel, target)
    for config in template.configs(kernel, target):
        (output,) = kernels.run_lowered(lowered, target, arrays, lambda _kernel, config=config: (template, config))
        np.testing.assert_allclose(output, np.maximum(arrays[0] + arrays[1], 0), rtol=1e-6)


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{p.name}" for p in (REPOSITORY / "docs").glob("*.md"))])
def test_commands_and_options_in_the_documents_exist(document):
    blocks = re.findall(r"^```\w*\n(.*?)^```", (REPOSITORY / document).read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    for line in (line for line in lines if line.startswith("tvmbridge ") and "|" not in line):
        words = shlex.split(line, comments=True)[1:]
        assert words[0] in cli.tvmbridge.commands, f"{document}: no such command: {line}"
        command = cli.tvmbridge.commands[words[0]]
        if hasattr(command, "commands"):
            command = command.commands[words.pop(1)]
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        given = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert given <= options, f"{document}: {given - options} in: {line}"


@pytest.mark.parametrize("document", sorted(p.name for p in (REPOSITORY / "docs").glob("*.md")))
def test_links_between_documents_lead_somewhere(document):
    text = (REPOSITORY / "docs" / document).read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in link or (REPOSITORY / "docs" / link).exists(), f"{document} → {link}"
    assert text.startswith("# ")
