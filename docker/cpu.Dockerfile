# Python and the pinned packages, no GPU. Not built by us: no Docker was at hand (docs/install.md).
#   docker build -f docker/cpu.Dockerfile -t repro .
FROM python:3.12-slim

WORKDIR /app
COPY constraints.txt ./
# TORCH_INDEX: the CPU index that pytorch.org names under "Get Started"; without it torch brings CUDA along
ARG TORCH_INDEX=""
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY . .
RUN pip install --no-cache-dir -c constraints.txt -e '.[report,cpu]'
ENTRYPOINT ["repro"]
CMD ["--help"]
