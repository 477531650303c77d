# The same for CUDA, whose libraries come with pip's torch. Not built by us: no Docker was at hand (docs/install.md).
#   docker build -f docker/cuda.Dockerfile -t repro-cuda .
# The host needs NVIDIA's driver and container toolkit.
FROM python:3.12-slim

# Triton builds its launchers with a C compiler
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt torch
COPY . .
RUN pip install --no-cache-dir -c constraints.txt -e '.[report,gpu]'
ENTRYPOINT ["repro"]
CMD ["--help"]
