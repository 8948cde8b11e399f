# docker build -t seg .                          PyTorch for CPUs
# docker build -t seg --build-arg TORCH=cu130 .  PyTorch for NVIDIA GPUs
# docs/containers.md has the commands to run it, and those of Apptainer.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
ARG TORCH=cpu
ARG EXTRAS=export
RUN pip install --no-cache-dir uv
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY seg seg
COPY conf conf
RUN uv venv --python /usr/local/bin/python /opt/seg \
 && uv pip install --no-cache --python /opt/seg/bin/python --torch-backend "${TORCH}" --constraints constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/seg /opt/seg
# HOME: any user may start the container; caches of matplotlib, W&B and seg go there
ENV PATH=/opt/seg/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
WORKDIR /work
ENTRYPOINT ["seg"]
