# A deploy image: Python, NumPy, tvm-ffi, tvmbridge and one bundle. No compiler, no TVM package.
#   docker build --build-arg BUNDLE=model.tvmb -t model .
#   docker run --rm model
FROM python:3.11-slim

COPY requirements-runtime.txt /tmp/requirements-runtime.txt
RUN pip install --no-cache-dir -r /tmp/requirements-runtime.txt

COPY pyproject.toml setup.py README.md LICENSE /tmp/tvmbridge/
COPY tvmbridge /tmp/tvmbridge/tvmbridge
RUN pip install --no-cache-dir --no-deps /tmp/tvmbridge && rm -r /tmp/tvmbridge

ARG BUNDLE
COPY --chmod=444 ${BUNDLE} /model.tvmb

# Not root; libraries are extracted to a folder of this user's own.
RUN useradd --create-home model
USER model
CMD ["python", "-c", "import tvmbridge; print(tvmbridge.load('/model.tvmb'))"]
