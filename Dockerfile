# biasreg in a container, with the torch of pip's registry, which brings CUDA. A smaller image for the CPU alone takes torch from the
# index that PyTorch's installation page names: docker build --build-arg CPU_INDEX=... -t biasreg .
# documentation/how-to/use-docker.md says how to run it.

ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
ARG CPU_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/biasreg
ENV PATH=/opt/biasreg/bin:$PATH
WORKDIR /source
COPY constraints.txt ./
RUN if [ -n "$CPU_INDEX" ]; then \
        pip install --no-deps --index-url "$CPU_INDEX" "$(grep '^torch==' constraints.txt)"; \
    fi
COPY pyproject.toml setup.py README.md LICENSE ./
COPY biasreg ./biasreg
RUN pip install -c constraints.txt .
RUN pip uninstall --yes pip

# Nothing but the environment goes on: no sources, no pip, no caches.
FROM python:${PYTHON_VERSION}-slim
LABEL org.opencontainers.image.title="biasreg" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/biasreg /opt/biasreg
RUN useradd --create-home --uid 1000 biasreg && mkdir /data && chown biasreg /data
# What a program keeps for itself goes where any user may write: docker run --user may name one without a home.
ENV PATH=/opt/biasreg/bin:$PATH BIASREG_ROOT=/data MPLCONFIGDIR=/tmp/matplotlib PYTHONDONTWRITEBYTECODE=1
USER biasreg
WORKDIR /data
VOLUME /data
CMD ["biasreg_predict", "--help"]
